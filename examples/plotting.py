"""Pictures of runs and benchmarks. Figures are made without pyplot, so no display and no global state is involved.

An SVG is transparent and follows the light or dark setting of its reader.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Points = Sequence[tuple[float, float]]
FEW = 6  # curves that leave room for a legend among them
DASHES = ("--", ":", "-.")


@dataclass(frozen=True)
class Theme:
    """Colours for a page that is light or dark; the picture itself is transparent.

    ``arms`` goes with ARMS, ``others`` are for whatever has no colour of its own.
    """

    name: str
    text: str
    grid: str
    arms: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def settings(self) -> dict[Any, str]:
        """Of matplotlib."""
        names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "legend.labelcolor")
        return {**dict.fromkeys(names, self.text), "grid.color": self.grid}


# One colour an arm everywhere; all have a contrast of 4.5 at least against white, or against GitHub's dark page.
ARMS = (
    "AdamW",
    "Muon",
    "AdaFisherW, orthogonal",
    "AdaFisherW, kronecker",
    "AdaFisherW, diagonal",
    "Adafactor",
    "SOAP",
    "NorMuon",
    "SOAP-Muon",
)
LIGHT = Theme(
    "light",
    "#24292f",
    "#d0d7de",
    ("#57606a", "#a04100", "#00695c", "#1a5fb4", "#8250df", "#bf3989", "#9a6700", "#116329", "#82071e"),
    ("#0550ae", "#6639ba", "#953800", "#0a3069"),
)
DARK = Theme(
    "dark",
    "#e6edf3",
    "#3d444d",
    ("#9ea7b3", "#ffa657", "#4fd1c0", "#79c0ff", "#d2a8ff", "#ff9bce", "#e3b341", "#7ee787", "#ffa198"),
    ("#a5d6ff", "#e2c5ff", "#ffc680", "#cae8ff"),
)


def color_of(arm: str, theme: Theme, index: int = 0) -> str:
    """That of an arm; those without one of their own share a few, by their place."""
    return dict(zip(ARMS, theme.arms, strict=True)).get(arm, theme.others[index % len(theme.others)])


def plot_training(history: Iterable[Mapping[str, Any]], path: str | Path, title: str) -> Path:
    """Training and evaluation loss against the step, from a Trainer's ``state.log_history``."""
    entries = list(history)
    figure, axes = new_figure(title)
    train = [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]
    evaluation = sorted({entry["step"]: entry["eval_loss"] for entry in entries if "eval_loss" in entry}.items())
    if train:
        axes.plot(*zip(*train, strict=True), color=LIGHT.arms[3], alpha=0.8, label="training")
    if evaluation:
        axes.plot(*zip(*evaluation, strict=True), color=LIGHT.arms[1], marker="o", linewidth=2, label="evaluation")
        step, loss = evaluation[-1]
        axes.annotate(f"{loss:.3f}", (step, loss), textcoords="offset points", xytext=(0, -16), ha="center")
    return save(figure, axes, path)


def plot_arms(curves: Mapping[str, Sequence[Points]], path: str | Path, title: str) -> Path:
    """Evaluation loss against the step: for each arm its mean over the seeds, and every seed as a thin line."""
    figure, axes = new_figure(title)
    ends: dict[Line2D, float] = {}
    others = 0  # arms without a colour of their own: told apart by colour and dashes
    for arm, seeds in curves.items():
        name = arm.partition(" (")[0]
        color, dashes = color_of(name, LIGHT, others), "-" if name in ARMS else DASHES[others % len(DASHES)]
        others += name not in ARMS
        for points in seeds:
            axes.plot(*zip(*points, strict=True), color=color, alpha=0.25, linewidth=1)
        steps = [step for step, _ in seeds[0]]
        means = [sum(at_step) / len(seeds) for at_step in zip(*([y for _, y in run] for run in seeds), strict=True)]
        line = axes.plot(steps, means, color=color, linestyle=dashes, marker="o", markersize=3, linewidth=2, label=arm)
        ends[line[0]] = means[-1]
    if len(curves) > FEW:
        _legend_beside(figure, ends)
    return save(figure, axes, path)


def _legend_beside(figure: Figure, ends: Mapping[Line2D, float]) -> None:
    """In the order in which the curves end, where a legend among them would hide some."""
    lines = sorted(ends, key=ends.__getitem__, reverse=True)
    figure.set_figwidth(figure.get_figwidth() + 3)
    figure.legend(handles=lines, loc="outside right center", frameon=False, labelcolor=LIGHT.text)


def plot_scaling(curves: Mapping[str, Points], path: str | Path, title: str) -> Path:
    """Bytes against the number of ranks, both on logarithmic axes; arms named "model, arm" share a model's dashes."""
    figure, axes = new_figure(title)
    models = list(dict.fromkeys(name.split(", ", 1)[0] for name in curves))
    for name, points in curves.items():
        model, arm = name.split(", ", 1)
        ranks, numbers = zip(*points, strict=True)
        dashes = ["-", "--", ":"][models.index(model)]
        gigabytes = [number / 1e9 for number in numbers]
        axes.plot(ranks, gigabytes, color=color_of(arm, LIGHT), linestyle=dashes, marker="o", label=name)
    axes.set(xlabel="ranks", ylabel="GB a rank", xscale="log", yscale="log")
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    return save(figure, axes, path)


def new_figure(title: str) -> tuple[Figure, Axes]:
    """An empty picture in the colours of a light page."""
    with rc_context(LIGHT.settings):
        figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
        axes = figure.subplots()
        axes.set(title=title, xlabel="optimizer steps", ylabel="loss (nats)")
    axes.grid(color=LIGHT.grid)
    axes.margins(y=0.1)
    return figure, axes


def save(figure: Figure, axes: Axes, path: str | Path) -> Path:
    """Writes the picture, by its suffix as a PNG on white or as an SVG for light and dark pages."""
    if axes.get_legend_handles_labels()[0] and not figure.legends:
        axes.legend(frameon=False, labelcolor=LIGHT.text)
    if Path(path).suffix == ".svg":
        Path(path).write_text(as_svg(figure), encoding="utf-8")
    else:
        figure.savefig(path)
    return Path(path)


def as_svg(figure: Figure) -> str:
    """The same text for the same figure: every colour of LIGHT is a variable, which dark pages set to that of DARK."""
    stream = io.StringIO()
    with rc_context({"svg.hashsalt": "adafisher", "svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    light, dark = "", ""
    svg = stream.getvalue()
    for index, (by_day, by_night) in enumerate(zip(colors(LIGHT), colors(DARK), strict=True)):
        svg = svg.replace(by_day, f"var(--c{index})")
        light += f"--c{index}: {by_day}; "
        dark += f"--c{index}: {by_night}; "
    style = f"<style>svg {{ {light}}} @media (prefers-color-scheme: dark) {{ svg {{ {dark}}} }}</style>"
    return re.sub(r"(<svg\b[^>]*>)", rf"\1\n {style}", svg, count=1)


def colors(theme: Theme) -> list[str]:
    """All of a theme, in the same order for each."""
    return [theme.text, theme.grid, *theme.arms, *theme.others]
