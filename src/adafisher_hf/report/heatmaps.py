"""Layers × steps as colours on a log scale: what is stiff and what is starved stands out as a bright or dark row."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from .names import block_of, short_names
from .run import Run
from .theme import LABEL, SMALL, Theme, new_figure, plain

ROW = 0.16  # inches
MOST_LABELS = 90
OUTLIERS = 0.005  # share of the values at each end that the colour scale may cut off

COLORS = {"mean": "inferno", "update_ratio": "viridis"}


def draw_heat_map(run: Run, figure_name: str, scale: tuple[float, float], label: str, theme: Theme) -> Figure:
    """One row a layer in the model's order, one column a logging step.

    Args:
        run: with curvature.
        figure_name: ``mean`` or ``update_ratio``.
        scale: lowest and highest value of the colours.
        label: of the colour bar.
        theme: of the page.
    """
    names = run.parameters()
    rows = [[value if value > 0 else math.nan for value in run.layer(name, figure_name)] for name in names]
    shown = min(len(names), MOST_LABELS)
    figure, axes = new_figure(theme, height=max(2.2, 1.15 + ROW * shown))
    colors = colormaps[COLORS[figure_name]].with_extremes(bad=theme.unknown)
    mesh = axes.pcolormesh(
        _edges([line["step"] for line in run.curvature]),
        range(len(names) + 1),
        rows,
        cmap=colors,
        norm=LogNorm(*scale),
        rasterized=True,
    )
    axes.invert_yaxis()
    stride = math.ceil(len(names) / MOST_LABELS)
    labels = [plain(name) for name in short_names(names)[::stride]]
    axes.set_yticks([i + 0.5 for i in range(0, len(names), stride)], labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("step")
    for i in range(1, len(names)):
        if block_of(names[i]) != block_of(names[i - 1]):
            axes.axhline(i, color=theme.background, linewidth=1.2)
    bar = figure.colorbar(mesh, ax=axes, location="top", fraction=0.03, pad=0.02, aspect=40, extend="both")
    bar.set_label(label, color=theme.text, fontsize=LABEL)
    bar.ax.tick_params(colors=theme.text, which="both", length=2, labelsize=SMALL)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    return figure


def color_scale(runs: Sequence[Run], figure_name: str) -> tuple[float, float] | None:
    """One scale for all runs, less the outliers; None where nothing is known."""
    values = sorted(
        value for run in runs for name in run.parameters() for value in run.layer(name, figure_name) if value > 0
    )
    if not values:
        return None
    cut = int(len(values) * OUTLIERS)
    low, high = values[cut], values[-1 - cut]
    return (low, high) if high > low * 1.01 else (low / 2, high * 2)


def _edges(steps: Sequence[int]) -> list[float]:
    """Borders of the columns: a line stands for the steps since the one before."""
    first = steps[0] - (steps[1] - steps[0] if len(steps) > 1 else 1)
    return [float(max(first, 0) if first < steps[0] else first), *map(float, steps)]
