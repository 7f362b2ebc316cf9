"""What is known of an arm so far, and how sure a mean over seeds is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .arms import Point
from .runner import Run
from .timing import Timing
from .tuning import best


@dataclass
class Standing:
    """An arm's.

    Attributes:
        tried: losses on the tuning split.
        finals: runs at the best point, a run a seed.
        steps_to: by rival, the shortest schedule that ends at the rival's final loss or below; None: not reached.
        timing: of its steps.
        equal_time: runs that take as long as the baseline's, a run a seed.
    """

    tried: dict[Point, float]
    finals: Sequence[Run] = ()
    steps_to: Mapping[str, int | None] = field(default_factory=dict)
    timing: Timing | None = None
    equal_time: Sequence[Run] = ()

    @property
    def point(self) -> Point:
        return best(self.tried)

    @property
    def mean_loss(self) -> float:
        return statistics.mean(run.loss for run in self.finals)


class Estimate(NamedTuple):
    """A mean over seeds, with its standard error; that of a single seed is unknown, nan."""

    mean: float
    error: float

    def counts(self) -> bool:
        """Whether it differs from zero by more than twice its standard error."""
        return abs(self.mean) > 2 * self.error

    def shown(self, digits: int = 3, signed: bool = False) -> str:
        if not math.isfinite(self.mean):
            return "diverged"
        error = "" if math.isnan(self.error) else f" ± {self.error:.{digits}f}"
        return f"{self.mean:{'+' if signed else ''}.{digits}f}{error}"


def estimate(numbers: Sequence[float]) -> Estimate:
    if len(numbers) < 2 or not all(map(math.isfinite, numbers)):
        return Estimate(statistics.mean(numbers), math.nan)
    return Estimate(statistics.mean(numbers), statistics.stdev(numbers) / len(numbers) ** 0.5)


def difference(numbers: Sequence[float], others: Sequence[float]) -> Estimate:
    """Numbers less others, seed by seed: what a seed does to both is taken out."""
    return estimate([a - b for a, b in zip(numbers, others, strict=True)])
