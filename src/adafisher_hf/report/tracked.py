"""What a tracker (TensorBoard, W&B) has of a run, put back into the Trainer's own words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

PREFIXES = {"train/": "", "eval/": "eval_", "test/": "test_"}  # what the Trainer's callbacks make of its keys
CURVATURE = "curvature/"


class Figure(NamedTuple):
    """One number of a tracker: at which step, after how many seconds if that is known, and the tracker's name of it."""

    step: int
    seconds: float | None
    tag: str
    value: float


@dataclass
class Tracked:
    """A run as a tracker has it.

    Attributes:
        history: entries like those of the Trainer's ``log_history``, by step, with ``seconds`` where they are known.
        args: of TrainingArguments, those that the tracker keeps.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        return last_step(self.history)

    def state(self) -> dict[str, Any]:
        """What the Trainer's state would say of how far the run is."""
        most = self.args.get("max_steps", -1)
        epoch = next((entry["epoch"] for entry in reversed(self.history) if entry.get("epoch")), None)
        if most < 0 and epoch and "num_train_epochs" in self.args:
            most = round(self.last_step * self.args["num_train_epochs"] / epoch)
        return {"global_step": self.last_step, "max_steps": most if most > 0 else ""}


def history_of(figures: Iterable[Figure]) -> list[dict[str, Any]]:
    """One entry a step for training and one for evaluation, which takes time of its own."""
    entries: dict[tuple[int, bool], dict[str, Any]] = {}
    for figure in figures:
        key = _in_the_trainers_words(figure.tag)
        entry = entries.setdefault((figure.step, key.startswith("eval_")), {"step": figure.step})
        if figure.seconds is not None:
            entry.setdefault("seconds", figure.seconds)
        entry[key] = figure.value
    return [entries[place] for place in sorted(entries)]


def curvature_of(history: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that ``curvature.jsonl`` would have, without the kinds of the parameters, which no tracker has.

    Every parameter has a dot in its name; the names of kinds of layers have none.
    """
    lines = []
    for entry in history:
        rows: dict[str, dict[str, Any]] = {}
        for key, value in entry.items():
            name, _, figure = key.removeprefix(CURVATURE).rpartition("/")
            if key.startswith(CURVATURE) and "." in name:
                rows.setdefault(name, {})[figure] = value
        if rows:
            lines.append({"step": entry["step"], "parameters": rows})
    return lines


def last_step(history: Iterable[dict[str, Any]]) -> int:
    """The latest step of a log; -1 of an empty one."""
    return max((entry["step"] for entry in history), default=-1)


def _in_the_trainers_words(tag: str) -> str:
    prefix = next((prefix for prefix in PREFIXES if tag.startswith(prefix)), "")
    return PREFIXES.get(prefix, "") + tag.removeprefix(prefix)
