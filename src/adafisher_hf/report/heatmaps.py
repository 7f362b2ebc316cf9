"""Layers × steps as colours on a log scale: what is stiff and what is starved stands out as a bright or dark row."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .names import block_of, short_names
from .run import SMALLEST, Run
from .vega import Spec, plain, table

ROW = 12  # pixels
MOST_HEIGHT = 1100  # pixels
MOST_COLUMNS = 200  # a picture has not many more pixels
OVERLAP = {"band": 1.06}  # of cells: no seams between them
OUTLIERS = 0.005  # share of the values at each end that the colour scale may cut off

COLORS = {"mean": "inferno", "update_ratio": "viridis"}


def draw_heat_map(run: Run, figure_name: str, scale: tuple[float, float], label: str) -> Spec:
    """One row a layer in the model's order, one column a logging step, or every n-th of very many.

    Args:
        run: with curvature.
        figure_name: ``mean`` or ``update_ratio``.
        scale: lowest and highest value of the colours.
        label: of the colour bar.
    """
    names = run.parameters()
    shown = [plain(name) for name in short_names(names)]
    kept = range(len(run.curvature))[:: -stride(run)][::-1]  # the last one always
    steps = [run.curvature[i]["step"] for i in kept]
    rows: list[list[str | float]] = [
        [row, *(values[i] if values[i] > SMALLEST else math.nan for i in kept)]
        for row, values in zip(shown, (run.layer(name, figure_name) for name in names), strict=True)
    ]
    first_of_blocks = [shown[i] for i in range(1, len(names)) if block_of(names[i]) != block_of(names[i - 1])]
    return {
        "data": table(("layer", *map(_column, steps)), rows, ("layer",)),
        "height": min(ROW * len(names), MOST_HEIGHT),
        "view": {"style": "unknown"},
        "encoding": {
            "y": {"field": "layer", "type": "nominal", "title": None, "scale": {"domain": shown}, "axis": _LAYERS}
        },
        "layer": [_cells(steps, figure_name, scale, label), _borders(first_of_blocks)],
        "usermeta": {"embedOptions": {"renderer": "canvas"}},  # tens of thousands of cells
    }


def stride(run: Run) -> int:
    """Every how many logging steps a column is shown."""
    return math.ceil(len(run.curvature) / MOST_COLUMNS)


def color_scale(runs: Sequence[Run], figure_name: str) -> tuple[float, float] | None:
    """One scale for all runs, less the outliers; None where nothing is known."""
    values = sorted(
        value for run in runs for name in run.parameters() for value in run.layer(name, figure_name) if value > SMALLEST
    )
    if not values:
        return None
    cut = int(len(values) * OUTLIERS)
    low, high = values[cut], values[-1 - cut]
    return (low, high) if high > low * 1.01 else (low / 2, high * 2)


_LAYERS: Spec = {"labelFontSize": 9, "labelLimit": 130, "labelOverlap": True, "ticks": False, "domain": False}
_BAR: Spec = {"orient": "top", "gradientLength": {"expr": "min(width, 300)"}, "gradientThickness": 8, "format": ".0e"}


def _column(step: int) -> str:
    return f"step {step}"


def _cells(steps: Sequence[int], figure_name: str, scale: tuple[float, float], label: str) -> Spec:
    colors = {"type": "log", "scheme": COLORS[figure_name], "domain": list(scale), "clamp": True}
    value = {"field": figure_name, "type": "quantitative"}
    axis = {"labelOverlap": True, "labelAngle": 0, "labelFlush": True, "ticks": False, "domain": False}
    return {
        "transform": [
            {"fold": [_column(step) for step in steps], "as": ["column", figure_name]},
            {"calculate": f"toNumber(slice(datum.column, {len(_column(0)) - 1}))", "as": "step"},
            {"filter": f"datum.{figure_name} > 0"},
        ],
        "mark": {"type": "rect", "width": OVERLAP, "height": OVERLAP},
        "encoding": {
            "x": {"field": "step", "type": "ordinal", "scale": {"domain": list(steps)}, "axis": axis},
            "color": {**value, "scale": colors, "legend": {**_BAR, "title": label}},
            "tooltip": [{"field": "layer"}, {"field": "step"}, {**value, "title": label, "format": ".3e"}],
        },
    }


def _borders(first_of_blocks: Sequence[str]) -> Spec:
    return {
        "data": {"values": [{"layer": name} for name in first_of_blocks]},
        "mark": {"type": "rule"},
        "encoding": {"y": {"field": "layer", "bandPosition": 0}},
    }
