"""What no layer of a model measures: parameters that have the curvature of their gradient alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..insight.coverage import CoverageRow

FALLBACK = "gradient"  # their kind
NAMED = 3


class Uncovered(NamedTuple):
    """Their share of all numbers, 0 to 1, and some of their names; empty if there are none."""

    share: float
    names: str


def uncovered(rows: Sequence[CoverageRow]) -> Uncovered:
    """Those of a model's coverage."""
    from ..insight.coverage import summarize

    share = sum(kind.share for kind in summarize(rows) if kind.kind == FALLBACK)
    names = [row.name for row in rows if row.kind == FALLBACK]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return Uncovered(share, ", ".join(names[:NAMED]) + more)
