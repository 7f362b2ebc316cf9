"""How figures look on a light and on a dark page, and how they become files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

WIDTH = 4.6  # inches: half of a wide page, and still readable when it fills that of a phone


@dataclass(frozen=True)
class Theme:
    """Colours of a page: lines are told apart by ``series``, ``unknown`` fills cells without a value."""

    background: str
    text: str
    grid: str
    unknown: str
    series: tuple[str, ...]

    def color(self, index: int) -> str:
        return self.series[index % len(self.series)]


LIGHT = Theme(
    background="#ffffff",
    text="#24292f",
    grid="#d8dee4",
    unknown="#d8dee4",
    series=("#1f6feb", "#d9480f", "#2b8a3e", "#9c36b5", "#b08900", "#0b7285", "#c2255c", "#5c6770"),
)
DARK = Theme(
    background="#161b22",
    text="#d5dbe1",
    grid="#353c45",
    unknown="#424a54",
    series=("#79b0ff", "#ff9f5a", "#6fd68a", "#dd8bf2", "#f2cf4a", "#6fd9e4", "#ff8fb3", "#aab4bf"),
)

LABEL, SMALL = 9, 8.5  # points
LONGEST = 50  # characters


def plain(text: str) -> str:
    """A name as matplotlib shows it letter by letter: no formula, on one line, not longer than a picture is wide."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]}…{line[-LONGEST // 2 :]}"
    # A "$" begins a formula, and matplotlib leaves what begins with "_" out of legends.
    return ("\u200b" if line.startswith("_") else "") + line.replace("$", r"\$")


def new_figure(theme: Theme, height: float = 2.9) -> tuple[Figure, Axes]:
    """An empty figure of the page's width."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor=theme.background)
    axes = figure.subplots()
    axes.set_facecolor(theme.background)
    axes.tick_params(colors=theme.text, which="both", length=3, labelsize=SMALL)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=theme.text, fontsize=LABEL)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    for spine in axes.spines.values():
        spine.set_color(theme.grid)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def as_svg(figure: Figure) -> bytes:
    """The same bytes for the same figure; text as paths, so that no font is needed."""
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "adafisher-hf"}):
        figure.savefig(stream, format="svg", dpi=200, metadata={"Date": None})
    return stream.getvalue()


def save_png(figure: Figure, file: Path, title: str, theme: Theme) -> None:
    """A picture that stands for itself: with its title."""
    figure.suptitle(plain(title), fontsize=11, color=theme.text)
    figure.savefig(file, dpi=150)
