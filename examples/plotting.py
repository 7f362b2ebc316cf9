"""Loss curves as PNG files. Figures are made without pyplot, so no display and no global state is involved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Theme:
    """Colours for a page that is light or dark; the picture itself is transparent."""

    name: str
    text: str
    arms: Mapping[str, str]
    others: Sequence[str]

    @property
    def settings(self) -> dict[str, Any]:
        """Of matplotlib."""
        names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")
        return dict.fromkeys(names, self.text)


# One colour an arm everywhere; all have a contrast of 4.5 at least against white, or against GitHub's dark page.
LIGHT = Theme(
    "light",
    "#24292f",
    {"AdamW": "#57606a", "Muon": "#a04100", "AdaFisherW, orthogonal": "#00695c", "AdaFisherW, kronecker": "#1a5fb4"},
    ("#8250df", "#bf3989", "#9a6700", "#0969da", "#116329", "#82071e"),
)
DARK = Theme(
    "dark",
    "#e6edf3",
    {"AdamW": "#9ea7b3", "Muon": "#ffa657", "AdaFisherW, orthogonal": "#4fd1c0", "AdaFisherW, kronecker": "#79c0ff"},
    ("#d2a8ff", "#ff9bce", "#e3b341", "#a5d6ff", "#7ee787", "#ffa198"),
)


def color_of(arm: str, theme: Theme, index: int = 0) -> str:
    """That of an arm; those without one of their own share a few, by their place."""
    return theme.arms.get(arm, theme.others[index % len(theme.others)])


def plot_training(history: Iterable[Mapping[str, Any]], path: str | Path, title: str) -> Path:
    """Training and evaluation loss against the step, from a Trainer's ``state.log_history``."""
    entries = list(history)
    figure, axes = _new_figure(title)
    train = [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]
    evaluation = sorted({entry["step"]: entry["eval_loss"] for entry in entries if "eval_loss" in entry}.items())
    if train:
        axes.plot(*zip(*train, strict=True), color="tab:blue", alpha=0.8, label="training")
    if evaluation:
        axes.plot(*zip(*evaluation, strict=True), color="tab:orange", marker="o", linewidth=2, label="evaluation")
        step, loss = evaluation[-1]
        axes.annotate(f"{loss:.3f}", (step, loss), textcoords="offset points", xytext=(0, -16), ha="center")
    return _save(figure, axes, path)


def plot_arms(curves: Mapping[str, Sequence[Points]], path: str | Path, title: str) -> Path:
    """Evaluation loss against the step: for each arm its mean over the seeds, and every seed as a thin line."""
    figure, axes = _new_figure(title)
    for index, (arm, seeds) in enumerate(curves.items()):
        color = color_of(arm.partition(" (")[0], LIGHT, index)
        for points in seeds:
            axes.plot(*zip(*points, strict=True), color=color, alpha=0.25, linewidth=1)
        steps = [step for step, _ in seeds[0]]
        means = [sum(at_step) / len(seeds) for at_step in zip(*([y for _, y in run] for run in seeds), strict=True)]
        axes.plot(steps, means, color=color, marker="o", markersize=3, linewidth=2, label=arm)
    return _save(figure, axes, path)


def plot_scaling(curves: Mapping[str, Points], path: str | Path, title: str) -> Path:
    """Bytes against the number of ranks, both on logarithmic axes; arms named "model, arm" share a model's dashes."""
    figure, axes = _new_figure(title)
    models, arms = ([name.split(", ")[part] for name in curves] for part in (0, 1))
    for name, points in curves.items():
        model, arm = name.split(", ")
        ranks, numbers = zip(*points, strict=True)
        color, dashes = (
            f"C{list(dict.fromkeys(arms)).index(arm)}",
            ["-", "--", ":"][list(dict.fromkeys(models)).index(model)],
        )
        axes.plot(ranks, [number / 1e9 for number in numbers], color=color, linestyle=dashes, marker="o", label=name)
    axes.set(xlabel="ranks", ylabel="GB a rank", xscale="log", yscale="log")
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    return _save(figure, axes, path)


def _new_figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel="optimizer steps", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.margins(y=0.1)
    return figure, axes


def _save(figure: Figure, axes: Axes, path: str | Path) -> Path:
    if axes.lines:
        axes.legend()
    figure.savefig(path)
    return Path(path)
