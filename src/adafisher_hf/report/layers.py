"""The pictures of the layers: what is stiff, what is starved, and the spread of curvature inside of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .curves import draw_spread
from .heatmaps import color_scale, draw_heat_map, stride
from .panels import Panel, file_name
from .run import Run
from .vega import plain


def layer_panels(runs: Sequence[Run]) -> list[tuple[Run, list[Panel]]]:
    """For each run with curvature: heat maps of mean curvature and of update to weight."""
    means, ratios = color_scale(runs, "mean"), color_scale(runs, "update_ratio")
    found = []
    for run in runs:
        panels = []
        if means and run.curvature:
            hint = (
                "mean(F) of each layer, one colour scale for all runs. A bright row is stiff: small steps there change "
                "the loss. A row that grows brighter is where a run tends to break. Grey: not known."
            )
            panels.append(_heat_map(run, "mean", means, ("Mean curvature: bright is stiff", "mean curvature"), hint))
        if ratios and run.curvature:
            hint = (
                "‖αu‖ / ‖θ‖, the length of one update over that of the weights, without weight decay. A dark row is "
                "starved: it hardly moves for its size. At 10⁻¹ ten steps in one direction replace a layer."
            )
            titles = ("Update to weight: dark is starved", "update / weight")
            panels.append(_heat_map(run, "update_ratio", ratios, titles, hint))
        if panels:
            found.append((run, panels))
    return found


def _heat_map(run: Run, figure: str, scale: tuple[float, float], titles: tuple[str, str], hint: str) -> Panel:
    every, steps = stride(run), [line["step"] for line in run.curvature]
    title, label = titles
    text = (
        f"{label} of {len(run.parameters())} layers of {plain(run.label)}, steps {steps[0]} to {steps[-1]}: "
        f"colours from {scale[0]:.1e} to {scale[1]:.1e}"
    )
    hint += f" One of {every} logging steps is shown." if every > 1 else ""
    name = {"mean": "curvature"}.get(figure, figure)
    return Panel(f"{name}_{file_name(run.label)}", title, hint, text, draw_heat_map(run, figure, scale, label))


def spread_panels(runs: Sequence[Run]) -> list[Panel]:
    """For each run with curvature: the spread of log-curvature by kind of layer."""
    shown = [run for run in runs if run.curvature]
    spreads = [value for run in shown for name in run.parameters() for value in run.layer(name, "log_spread")]
    known = [value for value in spreads if not math.isnan(value)]
    if not known:
        return []
    top = max(1.05 * max(known), 0.1)
    hint = (
        "Standard deviation of log₁₀ of the divisor inside a layer: line the mean over the layers of a kind, band from "
        "least to largest. At 0 the curvature changes nothing; the higher, the more it redistributes the update."
    )
    title = "Spread of log-curvature"
    return [
        Panel(
            f"spread_{file_name(run.label)}",
            title if len(runs) == 1 else f"{title}: {run.label}",
            hint,
            f"{title} of {plain(run.label)} by kind of layer, from 0 to at most {max(known):.2g} decades",
            draw_spread(run, top),
        )
        for run in shown
    ]
