"""Lines against the step: losses and other logged numbers of several runs, and the spread of curvature of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .run import Points, Run
from .theme import SMALL, Theme, new_figure, plain


def draw_loss(runs: Sequence[Run], theme: Theme) -> Figure:
    """Training loss as lines and evaluation loss as dots on a dashed line, one colour a run."""
    figure, axes = new_figure(theme)
    for i, run in enumerate(runs):
        color = theme.color(i)
        training, evaluation = run.points("loss"), run.points("eval_loss")
        if training:
            _line(axes, training, color=color, linewidth=1.6, label=plain(run.label))
        if evaluation:
            label = f"{plain(run.label)}, evaluation"
            _line(axes, evaluation, color=color, linestyle="--", linewidth=1.2, marker="o", markersize=5, label=label)
    return _finished(figure, axes, "loss", theme)


def draw_logged(runs: Sequence[Run], key: str, ylabel: str, theme: Theme, log_scale: bool = False) -> Figure:
    """One logged number, one line a run."""
    figure, axes = new_figure(theme)
    for i, run in enumerate(runs):
        points = run.points(key)
        if points:
            _line(axes, points, color=theme.color(i), linewidth=1.6, marker="o" if len(points) < 30 else None)
            axes.lines[-1].set(label=plain(run.label), markersize=3)
    if log_scale and any(value > 0 for run in runs for _, value in run.points(key)):
        axes.set_yscale("log")
    return _finished(figure, axes, ylabel, theme)


def draw_spread(run: Run, theme: Theme, top: float) -> Figure:
    """Spread of log-curvature by kind of layer: the mean over its layers, and a band from the least to the largest.

    Args:
        run: with curvature.
        theme: of the page.
        top: of the axis, the same for all runs.
    """
    figure, axes = new_figure(theme)
    steps = [line["step"] for line in run.curvature]
    for i, (kind, names) in enumerate(layers_by_kind(run).items()):
        at_step = list(zip(*(run.layer(name, "log_spread") for name in names), strict=True))
        known = [[value for value in values if not math.isnan(value)] or [math.nan] for values in at_step]
        means = [sum(values) / len(values) for values in known]
        marker = "o" if len(steps) < 4 else None
        label = f"{plain(kind)} ({len(names)})"
        axes.plot(steps, means, color=theme.color(i), linewidth=1.8, marker=marker, label=label)
        if len(names) > 1:
            low, high = [min(values) for values in known], [max(values) for values in known]
            axes.fill_between(steps, low, high, color=theme.color(i), alpha=0.16, linewidth=0)
    axes.set_ylim(0, top)
    return _finished(figure, axes, "spread (decades)", theme)


def layers_by_kind(run: Run) -> dict[str, list[str]]:
    """The parameters that have curvature, by what kind it is, those with most parameters first."""
    kinds: dict[str, list[str]] = {}
    last = {name: row.get("kind", "?") for line in run.curvature for name, row in line["parameters"].items()}
    for name in run.parameters():
        kinds.setdefault(str(last[name]), []).append(name)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def _line(axes: Axes, points: Points, **style: Any) -> None:
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, **style)


def _finished(figure: Figure, axes: Axes, ylabel: str, theme: Theme) -> Figure:
    axes.set(xlabel="step", ylabel=plain(ylabel))
    axes.grid(color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    if axes.lines:
        figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=theme.text, fontsize=SMALL)
    return figure
