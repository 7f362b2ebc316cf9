"""A mean over seeds, and how sure it is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

ERRORS = 2  # standard errors that a difference must have to count


class Estimate(NamedTuple):
    """A mean over seeds with its standard error; that of a single seed is unknown, nan."""

    mean: float
    error: float
    seeds: int

    @property
    def counts(self) -> bool:
        """Whether it differs from zero by more than twice its standard error."""
        return abs(self.mean) > ERRORS * self.error

    def shown(self, digits: int = 3, *, signed: bool = False) -> str:
        """With its error where there is one."""
        if not math.isfinite(self.mean):
            return "diverged"
        error = "" if math.isnan(self.error) else f" ± {self.error:.{digits}f}"
        return f"{self.mean:{'+' if signed else ''}.{digits}f}{error}"


def estimate(numbers: Sequence[float]) -> Estimate:
    """Of one number or more."""
    count, known = len(numbers), all(map(math.isfinite, numbers))
    error = statistics.stdev(numbers) / math.sqrt(count) if known and count > 1 else math.nan
    return Estimate(statistics.mean(numbers), error, count)
