"""What a training run has left in its folder; whatever is missing or damaged becomes a note."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.adafisher import AdaFisherConfig
from ..config.content import parse_json
from ..config.family import AdamQLRConfig, FAdamConfig, SIRFShampooConfig
from ..insight import log as curvature_log

CONFIG_NAMES = [cls.file_name for cls in (AdaFisherConfig, FAdamConfig, SIRFShampooConfig, AdamQLRConfig)]
STATE_NAME = "trainer_state.json"
COVERAGE_NAME = "coverage.json"
COVERAGE_COLUMNS: dict[str, dict[str, type]] = {
    "kinds": {"kind": str, "parameters": int, "numbers": int, "share": float},
    "parameters": {"name": str, "shape": list, "kind": str, "owners": list},
}

Points = list[tuple[int, float]]

LARGEST = 1e300  # beyond it no axis can be made, and no run is whole


@dataclass
class Run:
    """One run, as far as its files could be read.

    Attributes:
        label: the shortest end of the folder's path that no other run of the report has.
        state: of the Trainer; empty without a readable one.
        history: the entries of its log that have a step.
        curvature: lines of ``curvature.jsonl``, by step.
        coverage: ``kinds`` and ``parameters``, as ``adafisher-hf coverage --json`` prints them.
        config: the optimizer's.
        notes: what is missing, in plain words.
    """

    label: str
    state: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    curvature: list[dict[str, Any]] = field(default_factory=list)
    coverage: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def points(self, key: str) -> Points:
        """(step, value) of what the log has under a key; a value that is not finite, or as good as that, is nan."""
        return [(entry["step"], _finite(entry[key])) for entry in self.history if _is_number(entry.get(key))]

    def parameters(self) -> list[str]:
        """The parameters that have curvature, in the model's order."""
        known = dict.fromkeys(name for line in self.curvature for name in line["parameters"])
        order = {row["name"]: i for i, row in enumerate(self.coverage.get("parameters", []))}
        return sorted(known, key=lambda name: order.get(name, len(order)))

    def layer(self, name: str, figure: str) -> list[float]:
        """One figure of one parameter at every step of ``curvature``, nan where it is not known.

        Args:
            name: of the parameter.
            figure: ``mean``, ``log_spread``, or ``update_ratio``, ‖αu‖/‖θ‖.
        """
        return [figure_of(line["parameters"].get(name, {}), figure) for line in self.curvature]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads what is there.

    Raises:
        FileNotFoundError: a folder that does not exist.
        NotADirectoryError: a file in its place.
    """
    for folder in folders:
        if not folder.exists():
            raise FileNotFoundError(f"no folder {str(folder)!r}: give the output_dir of a training run")
        if not folder.is_dir():
            raise NotADirectoryError(f"{str(folder)!r} is a file: give the output_dir of a training run")
    return [_read(folder, label) for folder, label in zip(folders, _labels(folders), strict=True)]


def figure_of(row: dict[str, Any], figure: str) -> float:
    """A figure of one parameter's part of a line; nan where it is not known."""
    if figure != "update_ratio":
        return _finite(row.get(figure))
    update, weight = _finite(row.get("update")), _finite(row.get("weight"))
    return _finite(update / weight) if weight else math.nan


def _read(folder: Path, label: str) -> Run:
    run = Run(label)
    run.state = _state(folder, run.notes)
    log = run.state.get("log_history")
    run.history = [entry for entry in log if _has_step(entry)] if isinstance(log, list) else []
    if run.state and not run.history:
        run.notes.append(f"{STATE_NAME} has no log_history: no curves (did the run reach its first logging step?)")
    run.curvature = _curvature(folder / curvature_log.FILE_NAME, run.notes)
    run.coverage = _coverage(folder / COVERAGE_NAME, run.notes)
    config = next((name for name in CONFIG_NAMES if (folder / name).exists()), CONFIG_NAMES[0])
    run.config = _json_object(folder / config, run.notes, "no table of options; CurvatureCallback writes it")
    return run


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


def _labels(folders: Sequence[Path]) -> list[str]:
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths)) + 1):
        labels = ["/".join(parts[-length:]) for parts in paths]
        if len(set(labels)) == len(set(paths)):
            break
    return labels


def _has(row: Any, columns: dict[str, type]) -> bool:
    return isinstance(row, dict) and all(_is_of(row.get(column), kind) for column, kind in columns.items())


def _is_of(value: Any, kind: type) -> bool:
    if kind in (int, float):
        return not math.isnan(_finite(value)) and (kind is float or isinstance(value, int))
    return isinstance(value, kind)


def _has_step(entry: Any) -> bool:
    return isinstance(entry, dict) and curvature_log.is_step(entry.get("step"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: Any) -> float:
    try:
        return float(value) if _is_number(value) and abs(value) <= LARGEST else math.nan
    except OverflowError:  # JSON has whole numbers of any size
        return math.nan
