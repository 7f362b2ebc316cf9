"""Which pictures a report has, and what to look for in each."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from matplotlib.figure import Figure

from .curves import draw_logged, draw_loss, draw_spread
from .heatmaps import color_scale, draw_heat_map
from .run import Run
from .theme import Theme

MOST_METRICS = 6
LONGEST_FILE = 60  # characters of a run's or a metric's name in that of a file
NO_METRICS = ("eval_loss", "eval_runtime", "eval_model_preparation_time")


class Panel(NamedTuple):
    """One picture.

    Attributes:
        file: its name as a file, without ending.
        title: what it shows.
        hint: how to read it.
        draw: makes it for a theme.
    """

    file: str
    title: str
    hint: str
    draw: Callable[[Theme], Figure]


def training_panels(runs: Sequence[Run]) -> list[Panel]:
    """Losses, evaluation metrics, learning rate and gradient norm, all runs in each."""
    panels = []
    if _any(runs, "loss", "eval_loss"):
        hint = (
            "Lines: training, the mean since the last logging step. Dots: evaluation. A gap that opens is overfitting."
        )
        panels.append(Panel("loss", "Loss", hint, partial(draw_loss, runs)))
    if _any(runs, "learning_rate"):
        hint = "A loss that jumps where this peaks asks for a lower peak or a longer warm-up."
        draw = partial(draw_logged, runs, "learning_rate", "learning rate")
        panels.append(Panel("learning_rate", "Learning rate", hint, draw))
    if _any(runs, "grad_norm"):
        hint = (
            "Before clipping. Spikes are odd batches; a steady rise while the loss stalls is where divergence starts."
        )
        draw = partial(draw_logged, runs, "grad_norm", "gradient norm", log_scale=True)
        panels.append(Panel("grad_norm", "Gradient norm", hint, draw))
    for key in _metrics(runs):
        name = key.removeprefix("eval_").replace("_", " ")
        hint = "On the evaluation set."
        draw = partial(draw_logged, runs, key, name)
        panels.append(Panel(_file(key), f"Evaluation: {name}", hint, draw))
    return panels


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
            draw = partial(draw_heat_map, run, "mean", means, "mean curvature")
            panels.append(Panel(f"curvature_{_file(run.label)}", "Mean curvature: bright is stiff", hint, draw))
        if ratios and run.curvature:
            hint = (
                "‖αu‖ / ‖θ‖, the length of one update over that of the weights, without weight decay. A dark row is "
                "starved: it hardly moves for its size. At 10⁻¹ ten steps in one direction replace a layer."
            )
            draw = partial(draw_heat_map, run, "update_ratio", ratios, "update / weight")
            panels.append(Panel(f"update_ratio_{_file(run.label)}", "Update to weight: dark is starved", hint, draw))
        if panels:
            found.append((run, panels))
    return found


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
            f"spread_{_file(run.label)}",
            title if len(runs) == 1 else f"{title}: {run.label}",
            hint,
            partial(draw_spread, run, top=top),
        )
        for run in shown
    ]


def _any(runs: Sequence[Run], *keys: str) -> bool:
    return any(run.points(key) for run in runs for key in keys)


def _metrics(runs: Sequence[Run]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for entry in run.history for key in entry if key.startswith("eval_"))
    return [key for key in keys if key not in NO_METRICS and not key.endswith("_per_second") and _any(runs, key)][
        :MOST_METRICS
    ]


def _file(label: str) -> str:
    plain = re.sub(r"[^\w.-]+", "_", label)
    if plain == label and len(label) <= LONGEST_FILE:
        return label
    return f"{plain[:LONGEST_FILE]}_{zlib.crc32(label.encode(errors='replace')):08x}"  # apart from others like it
