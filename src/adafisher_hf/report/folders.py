"""What a training run has left in its folder; whatever is missing or damaged becomes a note."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config.adafisher import AdaFisherConfig
from ..config.base import OptimizerConfig
from ..config.content import parse_json
from ..config.family import AdamQLRConfig, FAdamConfig, MuonConfig, SIRFShampooConfig, SOAPConfig
from ..insight import log as curvature_log
from . import tensorboard, wandb
from .progress import fill_times
from .run import Run, finite
from .tracked import Tracked, curvature_of, last_step

CONFIGS = (AdaFisherConfig, FAdamConfig, SIRFShampooConfig, AdamQLRConfig, MuonConfig, SOAPConfig)
STATE_NAME = "trainer_state.json"
COVERAGE_NAME = "coverage.json"
COVERAGE_COLUMNS: dict[str, dict[str, type]] = {
    "kinds": {"kind": str, "parameters": int, "numbers": int, "share": float},
    "parameters": {"name": str, "shape": list, "kind": str, "owners": list},
}


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Reads what is there.

    Args:
        paths: the ``output_dir`` of a run, a folder of TensorBoard event files, or an export of W&B's history.

    Raises:
        FileNotFoundError: something that does not exist.
        NotADirectoryError: a file that is no export.
    """
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"no folder {str(path)!r}: give the output_dir of a training run")
        if not path.is_dir() and path.suffix not in wandb.SUFFIXES:
            raise NotADirectoryError(
                f"{str(path)!r} is a file: give the output_dir of a training run, "
                f"or W&B's history as {', '.join(wandb.SUFFIXES)}"
            )
    return [_read(path, label) for path, label in zip(paths, _labels(paths), strict=True)]


def _read(path: Path, label: str) -> Run:
    run = Run(label)
    if path.is_dir():
        _read_folder(path, run)
    else:
        _take(wandb.read(path, run.notes), run)
        run.curvature = curvature_of(run.history)
    run.times = fill_times(run.history)
    return run


def _read_folder(folder: Path, run: Run) -> None:
    of_state: list[str] = []
    run.state = _state(folder, of_state)
    log = run.state.get("log_history")
    run.history = [entry for entry in log if _has_step(entry)] if isinstance(log, list) else []
    if run.state and not run.history:
        of_state.append(f"{STATE_NAME} has no log_history: no curves (did the run reach its first logging step?)")
    tracked = tensorboard.read(folder, run.notes)
    if tracked.last_step > last_step(run.history):
        _take(tracked, run)
    else:
        _add_times(run.history, tracked.history)
        run.notes += of_state
    if not run.history:
        wandb.note_offline(folder, run.notes)
    _read_own_files(folder, run)


def _take(tracked: Tracked, run: Run) -> None:
    run.history = tracked.history
    run.state = {**run.state, **tracked.state()}
    run.optimizer = " ".join(filter(None, map(tracked.args.get, ("optim", "optim_args"))))


def _read_own_files(folder: Path, run: Run) -> None:
    """Curvature, coverage and options. A callback that named a foreign optimizer had nothing to write."""
    notes: list[str] = []
    told = _told(run.state)
    lines = _curvature(folder / curvature_log.FILE_NAME, notes)
    run.curvature = lines or curvature_of(run.history)
    if run.curvature and not lines:
        notes.clear()
    run.coverage = _coverage(folder / COVERAGE_NAME, notes)
    cls = next((cls for cls in CONFIGS if (folder / cls.file_name).exists()), AdaFisherConfig)
    run.config = _json_object(folder / cls.file_name, notes, "no table of options; CurvatureCallback writes it")
    run.optimizer = told or run.optimizer or (_named(cls, run.config) if run.config else "")
    run.notes += [note for note in notes if not (told and "is missing" in note)]


def _told(state: dict[str, Any]) -> str:
    """What CurvatureCallback has put into the Trainer's state."""
    callbacks = state.get("stateful_callbacks")
    told = callbacks.get("CurvatureCallback") if isinstance(callbacks, dict) else None
    attributes = told.get("attributes") if isinstance(told, dict) else None
    return str(attributes.get("optimizer", "")) if isinstance(attributes, dict) else ""


def _named(cls: type[OptimizerConfig], config: dict[str, Any]) -> str:
    structure = f" structure={config['structure']}" if "structure" in config else ""
    return cls.__name__.removesuffix("Config") + structure


def _add_times(history: list[dict[str, Any]], timed: list[dict[str, Any]]) -> None:
    """The times of a tracker, by step, for a log that has none."""
    seconds = {entry["step"]: entry["seconds"] for entry in timed if "seconds" in entry}
    if any("seconds" in entry for entry in history):
        return
    for entry in history:
        if entry["step"] in seconds:
            entry["seconds"] = seconds[entry["step"]]


def _state(folder: Path, notes: list[str]) -> dict[str, Any]:
    """The Trainer's state of the folder, else that of the latest checkpoint that has a readable one."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=_checkpoint_step, reverse=True)
    problems: list[str] = []
    for place in (folder, *checkpoints):
        state = _json_object(place / STATE_NAME, problems, "no curves of loss, learning rate and gradient norm")
        if state:
            notes.extend(problem for problem in problems if "missing" not in problem)
            return state
    notes.extend(dict.fromkeys(problems))
    return {}


def _curvature(file: Path, notes: list[str]) -> list[dict[str, Any]]:
    try:
        lines, unreadable = curvature_log.read(file)
    except OSError:
        notes.append(f"{file.name} is missing: no curvature (train with callbacks=[adafisher_hf.CurvatureCallback()])")
        return []
    if unreadable:
        notes.append(
            f"{file.name}: {unreadable} {'line' if unreadable == 1 else 'lines'} could not be read (cut short?)"
        )
    if not lines:
        notes.append(f"{file.name} has no line yet: no curvature")
    return lines


def _coverage(file: Path, notes: list[str]) -> dict[str, Any]:
    content = _json_object(file, notes, "no coverage table; layers are in the optimizer's order")
    for key, columns in COVERAGE_COLUMNS.items():
        rows = content.get(key)
        if content and not (isinstance(rows, list) and all(_has(row, columns) for row in rows)):
            notes.append(f"{file.name} has no usable {key!r}: no coverage table")
            return {}
    return content


def _json_object(file: Path, notes: list[str], consequence: str) -> dict[str, Any]:
    try:
        content = parse_json(file.read_text(encoding="utf-8-sig", errors="replace"))
    except OSError:
        notes.append(f"{file.name} is missing: {consequence}")
    except ValueError as error:
        reason = "nested too deeply" if "nested" in str(error) else "empty or not complete JSON"
        notes.append(f"{_place(file)} is {reason}: {consequence}")
    else:
        if isinstance(content, dict):
            return content
        notes.append(f"{_place(file)} is no JSON object: {consequence}")
    return {}


def _place(file: Path) -> str:
    return f"{file.parent.name}/{file.name}" if file.parent.name.startswith("checkpoint-") else file.name


def _checkpoint_step(folder: Path) -> int:
    step = folder.name.rpartition("-")[2]
    return int(step) if step.isdecimal() else -1


def _labels(paths_given: Sequence[Path]) -> list[str]:
    paths = [path.resolve().parts for path in paths_given]
    for length in range(1, max(map(len, paths)) + 1):
        labels = ["/".join(parts[-length:]) for parts in paths]
        if len(set(labels)) == len(set(paths)):
            break
    return labels


def _has(row: Any, columns: dict[str, type]) -> bool:
    return isinstance(row, dict) and all(_is_of(row.get(column), kind) for column, kind in columns.items())


def _is_of(value: Any, kind: type) -> bool:
    if kind in (int, float):
        return not math.isnan(finite(value)) and (kind is float or isinstance(value, int))
    return isinstance(value, kind)


def _has_step(entry: Any) -> bool:
    return isinstance(entry, dict) and curvature_log.is_step(entry.get("step"))
