"""Pictures as Vega-Lite specifications: the browser draws them on the page, vl-convert draws the PNG files.

A specification has no colours of a page: those are in the two configs, and the browser takes the one that fits.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]

WIDTH, HEIGHT = 460, 220  # pixels of a PNG picture's axes; on the page the width is that of its card
ROWS = "rows"  # the name of the data in a specification; page.js asks for it


@dataclass(frozen=True)
class Theme:
    """Colours of a page: lines are told apart by ``series``, ``unknown`` fills cells without a value."""

    background: str
    text: str
    grid: str
    unknown: str
    series: tuple[str, ...]


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


def config(theme: Theme) -> Spec:
    """The part of a specification that a theme decides."""
    text = {"labelColor": theme.text, "titleColor": theme.text, "titleFontWeight": "normal"}
    return {
        "background": theme.background,
        "mark": {"aria": False},  # the page says in words what is to be seen
        "font": "system-ui, sans-serif",
        "axis": {
            **text,
            "titleLimit": HEIGHT,
            "gridColor": theme.grid,
            "domainColor": theme.grid,
            "tickColor": theme.grid,
        },
        "legend": {**text, "symbolOpacity": 1, "symbolStrokeWidth": 2},
        "rule": {"color": theme.background, "strokeWidth": 1.5},
        "title": {"color": theme.text, "fontWeight": "normal", "limit": WIDTH},
        "range": {"category": list(theme.series)},
        "style": {"cell": {"stroke": None}, "unknown": {"fill": theme.unknown, "stroke": None}},
    }


def table(columns: Sequence[str], rows: Iterable[Sequence[str | float]], texts: Sequence[str]) -> Spec:
    """Rows as the data of a specification, in CSV: the reader of the page can have the same text as a file.

    Args:
        columns: their names, none of which is a number: a browser would put it first.
        rows: a number that is not finite is an empty cell.
        texts: the columns that are no numbers.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    kinds = {column: "string" if column in texts else "number" for column in columns}
    return {"name": ROWS, "values": stream.getvalue(), "format": {"type": "csv", "parse": kinds}}


def plain(text: str) -> str:
    """A name on one line, without what no font can show; a name of nothing gets one."""
    return "".join(letter if letter.isprintable() else " " for letter in text) or "(no name)"


def png(spec: Spec, title: str, theme: Theme) -> bytes:
    """A picture that stands for itself: with its title."""
    import vl_convert

    whole = {**spec, "width": WIDTH, "title": plain(title), "config": config(theme), "padding": 10}
    return vl_convert.vegalite_to_png(whole, scale=2)


def bundle() -> str:
    """Vega, Vega-Lite and vega-embed as one script that needs nothing else; ``vegaEmbed`` is its global."""
    import vl_convert

    return vl_convert.javascript_bundle("globalThis.vegaEmbed = vegaEmbed;")


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.6g}" if math.isfinite(value) and not float(value).is_integer() else _whole(value)


def _whole(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return str(int(value)) if abs(value) < 2**53 else f"{value:.6g}"
