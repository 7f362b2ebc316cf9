"""How long a run has taken, whether it has ended, and how long it will take."""

from __future__ import annotations

import math
from typing import Any

from .run import Run, finite
from .tracked import last_step

SECONDS = "seconds"


def fill_times(history: list[dict[str, Any]]) -> str:
    """Puts ``seconds`` into those entries of a log that have none.

    That is evaluations in a log whose other entries have it, and all entries of one that has only ``train_runtime``,
    which is spread evenly over the steps.

    Returns:
        ``logged`` if they were there, ``estimated``, or empty if nothing is known.
    """
    for entry in history:
        if math.isnan(finite(entry.get(SECONDS))):
            entry.pop(SECONDS, None)
    if any(SECONDS in entry for entry in history):
        _time_evaluations(history)
        return "logged"
    seconds = next((finite(e["train_runtime"]) for e in reversed(history) if "train_runtime" in e), math.nan)
    last = last_step(history)
    if math.isnan(seconds) or last <= 0:
        return ""
    for entry in history:
        entry[SECONDS] = seconds * entry["step"] / last
    return "estimated"


def _time_evaluations(history: list[dict[str, Any]]) -> None:
    """An evaluation ends its ``eval_runtime`` after its step; the step comes after the last log at the pace so far."""
    last: dict[str, Any] = {}
    for entry in history:
        if SECONDS in entry:
            last = entry
        elif last.get("step") and "eval_runtime" in entry:
            pace = last[SECONDS] / last["step"]
            took = finite(entry["eval_runtime"])
            entry[SECONDS] = last[SECONDS] + (entry["step"] - last["step"]) * pace + took


def finished(run: Run) -> bool:
    """Whether the Trainer has logged the end of the training that the last step belongs to."""
    ends = [entry["step"] for entry in run.history if "train_runtime" in entry]
    return bool(ends) and max(ends) >= last_step(run.history)


def seconds_left(run: Run) -> float | None:
    """At the pace so far; None where steps or times are not known."""
    most, points = finite(run.state.get("max_steps")), [e for e in run.history if e["step"] and SECONDS in e]
    if finished(run) or not points or math.isnan(most):
        return None
    step, seconds = points[-1]["step"], points[-1][SECONDS]
    return max(most - step, 0) * seconds / step
