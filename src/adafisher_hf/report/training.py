"""The pictures of the training: losses, learning rate, gradient norm, metrics, and what an optimizer chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .curves import draw_logged, draw_loss
from .panels import Panel, file_name
from .run import Points, Run
from .vega import plain

MOST_METRICS = 6
NO_METRICS = ("eval_loss", "eval_runtime", "eval_model_preparation_time")

# What an optimizer chooses by itself: its key in the log, the title, and how to read it.
CHOSEN = (
    (
        "adamqlr/lr",
        "AdamQLR: chosen learning rate",
        "α, what its quadratic model of the loss asks for, before the schedule. Below zero: the direction goes uphill.",
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
    return Panel(file_name(key), title, hint, text, draw_logged(runs, key, name, log_scale=log_scale))


def _course(points: Points, by: str = "step") -> str:
    known = [(place, value) for place, value in points if not math.isnan(value)]
    if not known:
        return ": not finite"
    (first, begin), (last, end) = known[0], known[-1]
    least, most = (pick(value for _, value in known) for pick in (min, max))
    return f": {begin:.4g} at {by} {first:.5g}, {end:.4g} at {by} {last:.5g}, between {least:.4g} and {most:.4g}"


def _any(runs: Sequence[Run], *keys: str) -> bool:
    return any(run.points(key) for run in runs for key in keys)


def _metrics(runs: Sequence[Run]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for entry in run.history for key in entry if key.startswith("eval_"))
    return [key for key in keys if key not in NO_METRICS and not key.endswith("_per_second") and _any(runs, key)][
        :MOST_METRICS
    ]
