"""What an optimizer tells of its curvature, by flat names: ``curvature/<kind of layer or parameter>/<figure>``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from ..insight.summary import ParameterSummary, summarize_rows


@runtime_checkable
class ShowsCurvature(Protocol):
    """An optimizer with something to show.

    It may also have ``coverage_rows()``, for ``coverage.json``, and ``figures()``: more figures by group and name.
    """

    def summary_rows(self) -> list[ParameterSummary]:
        """One row for every parameter that has taken a step."""


def logged(optimizer: Any) -> dict[str, float]:
    """What an optimizer wants in every log of the training loss, if it has ``logged()``; finite numbers only."""
    return finite(getattr(optimizer, "logged", dict)())


def by_kind(optimizer: ShowsCurvature, rows: Iterable[ParameterSummary]) -> dict[str, float]:
    """The rows by kind of layer, and the optimizer's own figures."""
    more: dict[str, dict[str, float]] = getattr(optimizer, "figures", dict)()
    kinds = summarize_rows(rows, more)
    return {f"curvature/{kind}/{name}": value for kind, row in kinds.items() for name, value in row.items()}


def by_parameter(rows: Iterable[ParameterSummary]) -> dict[str, float]:
    """Each row by itself; ``update_ratio`` is ‖αu‖/‖θ‖."""
    figures = {}
    for row in rows:
        ratio = row.update / row.weight if row.weight else math.nan
        for name, value in (("mean", row.mean), ("log_spread", row.log_spread), ("update_ratio", ratio)):
            figures[f"curvature/{row.name}/{name}"] = value
    return figures


def finite(figures: dict[str, Any]) -> dict[str, Any]:
    """Those that are finite numbers."""
    return {key: value for key, value in figures.items() if math.isfinite(value)}
