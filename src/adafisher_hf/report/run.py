"""One training run, as far as its files could be read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

Points = list[tuple[float, float]]

LARGEST = 1e300  # beyond it no axis can be made, and no run is whole
SMALLEST = 1e-300  # below it no log scale can be made


@dataclass
class Run:
    """One run, as far as its files could be read.

    Attributes:
        label: the shortest end of the folder's path that no other run of the report has.
        optimizer: its name and what was asked of it; empty where no file says it.
        state: of the Trainer; empty without a readable one.
        history: the entries of its log that have a step; ``seconds`` of training where they are known.
        times: where these come from: ``logged``, ``estimated``, or empty for nowhere.
        curvature: lines of ``curvature.jsonl``, by step.
        coverage: ``kinds`` and ``parameters``, as ``adafisher-hf coverage --json`` prints them.
        config: the optimizer's.
        notes: what is missing, in plain words.
    """

    label: str
    optimizer: str = ""
    state: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    times: str = ""
    curvature: list[dict[str, Any]] = field(default_factory=list)
    coverage: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def points(self, key: str, by: str = "step") -> Points:
        """(place, value) of what the log has under a key; a value that is not finite, or as good as that, is nan.

        Args:
            key: of the log.
            by: ``step`` or ``seconds``; entries whose time is not known are left out.
        """
        return [(entry[by], finite(entry[key])) for entry in self.history if by in entry and is_number(entry.get(key))]

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


def figure_of(row: dict[str, Any], figure: str) -> float:
    """A figure of one parameter's part of a line; nan where it is not known."""
    if figure != "update_ratio" or figure in row:
        return finite(row.get(figure))
    update, weight = finite(row.get("update")), finite(row.get("weight"))
    return finite(update / weight) if weight else math.nan


def is_number(value: Any) -> bool:
    """Whether a log may have it as a figure."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite(value: Any) -> float:
    """A number that an axis can have; nan for everything else."""
    try:
        return float(value) if is_number(value) and abs(value) <= LARGEST else math.nan
    except OverflowError:  # JSON has whole numbers of any size
        return math.nan
