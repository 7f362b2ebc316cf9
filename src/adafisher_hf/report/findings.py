"""What stands out in a run, in numbers: the stiffest and the most starved layers, and losses that are not finite."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import NamedTuple

from .run import Run, figure_of

SHOWN = 3
ODD = 2.0  # so many times the median of its kind, or less than one part in so many


class Layer(NamedTuple):
    """One parameter: its figure at the last step where it is known, and that over the median of its kind."""

    name: str
    value: float
    times_median: float


def stiffest(run: Run) -> list[Layer]:
    """The layers whose mean curvature is large for their kind, the largest first."""
    odd = [layer for layer in _last_layers(run, "mean") if layer.times_median > ODD]
    return sorted(odd, key=lambda layer: -layer.times_median)[:SHOWN]


def most_starved(run: Run) -> list[Layer]:
    """The layers that move little for their size and kind, the least first."""
    odd = [layer for layer in _last_layers(run, "update_ratio") if layer.times_median < 1 / ODD]
    return sorted(odd, key=lambda layer: layer.times_median)[:SHOWN]


def first_broken_step(run: Run) -> int | None:
    """The first logging step whose loss was not finite."""
    return next((step for step, loss in run.points("loss") if math.isnan(loss)), None)


def best_evaluation(run: Run) -> tuple[int, float] | None:
    """Step and value of the lowest evaluation loss."""
    points = [(step, loss) for step, loss in run.points("eval_loss") if not math.isnan(loss)]
    return min(points, key=lambda point: point[1], default=None)


def last_known(run: Run, key: str) -> float | None:
    """The last finite value that the log has under a key."""
    return next((value for _, value in reversed(run.points(key)) if not math.isnan(value)), None)


def _last_layers(run: Run, figure: str) -> list[Layer]:
    """Kinds against their own: a norm's gain always moves less than a matrix, and that is no finding."""
    for line in reversed(run.curvature):
        kinds: dict[str, dict[str, float]] = defaultdict(dict)
        for name, row in line["parameters"].items():
            value = figure_of(row, figure)
            if value > 0:
                kinds[str(row.get("kind"))][name] = value
        if kinds:
            medians = {kind: statistics.median(values.values()) for kind, values in kinds.items()}
            return [Layer(name, x, x / medians[kind]) for kind, values in kinds.items() for name, x in values.items()]
    return []
