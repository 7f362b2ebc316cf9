"""Which pictures a report has, and what to look for in each."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from typing import NamedTuple

from .curves import draw_logged, draw_loss, draw_spread
from .heatmaps import color_scale, draw_heat_map, stride
from .run import Points, Run
from .vega import Spec, plain

MOST_METRICS = 6
LONGEST_FILE = 60  # characters of a run's or a metric's name in that of a file
NO_METRICS = ("eval_loss", "eval_runtime", "eval_model_preparation_time")

# What an optimizer chooses by itself: its key in the log, the title, and how to read it.
CHOSEN = (
    (
        "adamqlr/lr",
        "AdamQLR: chosen learning rate",
        "α, the step that its quadratic model of the loss asks for, before the schedule. Below zero: the model said "
        "that the direction goes uphill.",
    ),
    (
        "adamqlr/damping",
        "AdamQLR: damping",
        "λ. It falls while the model foretells the loss well, and rises where it does not.",
    ),
    (
        "adamqlr/rho",
        "AdamQLR: gain over what was foretold",
        "ρ. Near 1 the quadratic model is right. Above ¾ the damping falls, below ¼ it rises.",
    ),
)


class Panel(NamedTuple):
    """One picture.

    Attributes:
        file: its name as a file, without ending.
        title: what it shows.
        hint: how to read it.
        text: what is to be seen, in words and numbers, for those who do not see it.
        spec: the picture itself.
    """

    file: str
    title: str
    hint: str
    text: str
    spec: Spec


def training_panels(runs: Sequence[Run]) -> list[Panel]:
    """Losses, evaluation metrics, learning rate and gradient norm, all runs in each."""
    panels = _loss_panels(runs)
    if _any(runs, "learning_rate"):
        hint = "A loss that jumps where this peaks asks for a lower peak or a longer warm-up."
        panels.append(_logged(runs, "learning_rate", "Learning rate", hint))
    if _any(runs, "grad_norm"):
        hint = (
            "Before clipping. Spikes are odd batches; a steady rise while the loss stalls is where divergence starts."
        )
        panels.append(_logged(runs, "grad_norm", "Gradient norm", hint, log_scale=True))
    for key, title, hint in CHOSEN:
        if _any(runs, key):
            panels.append(_logged(runs, key, title, hint, log_scale=key != "adamqlr/rho"))
    for key in _metrics(runs):
        name = key.removeprefix("eval_").replace("_", " ")
        panels.append(_logged(runs, key, f"Evaluation: {name}", "On the evaluation set."))
    return panels


def _loss_panels(runs: Sequence[Run]) -> list[Panel]:
    """The loss over the steps, and over the time where it is known of some run."""
    panels = []
    if _any(runs, "loss", "eval_loss"):
        hint = (
            "Lines: training, the mean since the last logging step. Dots: evaluation. A gap that opens is overfitting."
        )
        panels.append(Panel("loss", "Loss", hint, _loss_text(runs, "step"), draw_loss(runs)))
    timed = [run for run in runs if run.points("loss", by="seconds") or run.points("eval_loss", by="seconds")]
    if timed:
        spec = draw_loss(runs, "seconds")
        panels.append(Panel("loss_by_time", "Loss by time", _time_hint(runs), _loss_text(timed, "seconds"), spec))
    return panels


def _time_hint(runs: Sequence[Run]) -> str:
    estimated = ", ".join(run.label for run in runs if run.times == "estimated")
    unknown = ", ".join(run.label for run in runs if not run.times)
    return " ".join(
        filter(
            None,
            (
                "Time of training with its evaluations; where a run was resumed, without the pause.",
                f"Estimated for {estimated}: the log has only the whole time (of its last part, if it was resumed), "
                "spread evenly over the steps."
                if estimated
                else "",
                f"Not known for {unknown}." if unknown else "",
            ),
        )
    )


def _loss_text(runs: Sequence[Run], by: str) -> str:
    parts = [
        f"{what} of {plain(run.label)}{_course(run.points(key, by=by), by)}"
        for run in runs
        for what, key in (("training loss", "loss"), ("evaluation loss", "eval_loss"))
        if run.points(key, by=by)
    ]
    return "; ".join(parts)


def _logged(runs: Sequence[Run], key: str, title: str, hint: str, log_scale: bool = False) -> Panel:
    name = title.rpartition(": ")[2].lower()
    text = "; ".join(f"{name} of {plain(run.label)}{_course(run.points(key))}" for run in runs if run.points(key))
    return Panel(_file(key), title, hint, text, draw_logged(runs, key, name, log_scale=log_scale))


def _course(points: Points, by: str = "step") -> str:
    known = [(place, value) for place, value in points if not math.isnan(value)]
    if not known:
        return ": not finite"
    (first, begin), (last, end) = known[0], known[-1]
    least, most = (pick(value for _, value in known) for pick in (min, max))
    return f": {begin:.4g} at {by} {first:.5g}, {end:.4g} at {by} {last:.5g}, between {least:.4g} and {most:.4g}"


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
    return Panel(f"{name}_{_file(run.label)}", title, hint, text, draw_heat_map(run, figure, scale, label))


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
            f"{title} of {plain(run.label)} by kind of layer, from 0 to at most {max(known):.2g} decades",
            draw_spread(run, top),
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
    safe = re.sub(r"[^\w.-]+", "_", label)
    if safe == label and len(label) <= LONGEST_FILE:
        return label
    return f"{safe[:LONGEST_FILE]}_{zlib.crc32(label.encode(errors='replace')):08x}"  # apart from others like it
