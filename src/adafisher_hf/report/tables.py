"""The tables of a report, as HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from .findings import Layer, best_evaluation, last_known, most_starved, stiffest
from .names import short_names
from .run import Run

Cell = tuple[str, bool]  # HTML, and whether it is a number


def runs_table(runs: Sequence[Run]) -> str:
    """One row a run: how far it came and how well it did."""
    rows = []
    for run in runs:
        best, seconds = best_evaluation(run), last_known(run, "train_runtime")
        evaluation = "" if best is None else f"{best[1]:.4g} (step {best[0]})"
        cells = (
            _text(run.label),
            _number(f"{run.state.get('global_step', '')} / {run.state.get('max_steps', '')}" if run.state else ""),
            _number(_short(last_known(run, "loss"))),
            _number(evaluation),
            _number(_short(max((rate for _, rate in run.points("learning_rate")), default=None))),
            _number("" if seconds is None else _duration(seconds)),
        )
        rows.append(cells)
    header = ("run", "steps", "last training loss", "lowest evaluation loss", "peak learning rate", "time")
    return _table(header, rows)


def layers_table(run: Run) -> str:
    """The layers of a run that are stiff or starved for their kind at the last logging step, if any are."""
    names = run.parameters()
    short = dict(zip(names, short_names(names), strict=True))
    rows = [
        (_text(what if i == 0 else ""), _text(short[layer.name]), _number(f"{layer.value:.2e}"), _number(_times(layer)))
        for what, layers in (("stiff", stiffest(run)), ("starved", most_starved(run)))
        for i, layer in enumerate(layers)
    ]
    return _table(("", "layer", "value", "× median"), rows) if rows else ""


def coverage_table(coverage: dict[str, Any]) -> str:
    """The share of each kind of curvature, and every parameter in a list that opens."""
    kinds = [
        (
            _text(row["kind"]),
            _number(f"{row['parameters']:,}"),
            _number(f"{row['numbers']:,}"),
            _number(f"{row['share']:.1%}"),
            (f'<span class="bar" style="width:{100 * row["share"]:.0f}px"></span>', False),
        )
        for row in coverage["kinds"]
    ]
    parameters = [
        (
            _code(row["name"]),
            _text("×".join(map(str, row["shape"])) or "scalar"),
            _text(row["kind"]),
            _code(", ".join(map(str, row["owners"]))),
        )
        for row in coverage["parameters"]
    ]
    table = _table(("kind of curvature", "parameters", "numbers", "share", ""), kinds)
    details = _table(("name", "shape", "kind", "modules"), parameters)
    return f"{table}<details><summary>all {len(parameters)} parameters</summary>{details}</details>"


def config_table(runs: Sequence[Run]) -> str:
    """One column a run, one row an option; bold where runs differ."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key != "version")
    rows, differs = [], []
    for key in keys:
        values = [_plain(run.config.get(key)) if run.config else "" for run in runs]
        rows.append((_code(key), *map(_text, values)))
        differs.append(len(set(values)) > 1)
    return _table(("option", *(run.label for run in runs)), rows, differs)


def _table(header: Sequence[str], rows: Sequence[Sequence[Cell]], marked: Sequence[bool] = ()) -> str:
    numeric = [any(row[k][1] for row in rows) for k in range(len(header))]
    head = "".join(_cell("th", escape(text), number) for text, number in zip(header, numeric, strict=True))
    body = "".join(
        f"<tr{' class=differs' if i < len(marked) and marked[i] else ''}>"
        + "".join(_cell("td", *cell) for cell in row)
        + "</tr>"
        for i, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(tag: str, html: str, number: bool) -> str:
    return f"<{tag}{' class=number' if number else ''}>{html}</{tag}>"


def _text(value: Any) -> Cell:
    return escape(str(value)), False


def _code(value: Any) -> Cell:
    return f"<code>{escape(str(value))}</code>", False


def _number(text: str) -> Cell:
    return escape(text), True


def _plain(value: Any) -> str:
    return "default" if value is None else str(value)


def _short(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4g}"


def _times(layer: Layer) -> str:
    return f"{layer.times_median:.0f}" if layer.times_median >= 10 else f"{layer.times_median:.2g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
