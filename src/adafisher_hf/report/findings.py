"""What stands out in a run, in numbers: the stiffest and the most starved layers, and losses that are not finite."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import NamedTuple

from .run import Run, figure_of

ODD = 2.0  # so many times the median of its kind, or less than one part in so many


class Layer(NamedTuple):
    """One parameter beside its kind, at the last step where its figure is known.

    Attributes:
        name: of the parameter.
        kind: of its curvature.
        value: of the figure.
        median: of the kind.
        others: how many layers of this kind were compared, with itself.
    """

    name: str
    kind: str
    value: float
    median: float
    others: int

    @property
    def times_median(self) -> float:
        return self.value / self.median


def stiffest(run: Run) -> list[Layer]:
    """The layers whose mean curvature is large for their kind, the largest first."""
    odd = [layer for layer in _last_layers(run, "mean") if layer.times_median > ODD]
    return sorted(odd, key=lambda layer: -layer.times_median)


def most_starved(run: Run) -> list[Layer]:
    """The layers that move little for their size and kind, the least first."""
    odd = [layer for layer in _last_layers(run, "update_ratio") if layer.times_median < 1 / ODD]
    return sorted(odd, key=lambda layer: layer.times_median)


def first_broken_step(run: Run) -> float | None:
    """The first logging step whose loss was not finite."""
    return next((step for step, loss in run.points("loss") if math.isnan(loss)), None)


def best_evaluation(run: Run) -> tuple[float, float] | None:
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
            if value > 0 and "kind" in row:
                kinds[str(row["kind"])][name] = value
        if kinds:
            return [layer for kind, values in kinds.items() for layer in _of_kind(kind, values)]
    return []


def _of_kind(kind: str, values: dict[str, float]) -> list[Layer]:
    median = statistics.median(values.values())
    return [Layer(name, kind, value, median, len(values)) for name, value in values.items()]
