"""The tables of a report, as HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from .findings import ODD, Layer, best_evaluation, last_known, most_starved, stiffest
from .names import short_names
from .progress import SECONDS
from .run import Run

Cell = tuple[str, bool]  # HTML, and whether it is a number


def runs_table(runs: Sequence[Run]) -> str:
    """One row a run: how far it came and how well it did, the best of several marked."""
    losses = [last_known(run, "loss") for run in runs]
    lowest = [best_evaluation(run) for run in runs]
    values = [None if found is None else found[1] for found in lowest]
    columns = (
        [_text(run.label) for run in runs],
        [_text(run.optimizer or "not known") for run in runs],
        [_number(_steps(run)) for run in runs],
        _marked([_short(loss) for loss in losses], losses),
        _marked(["" if found is None else f"{found[1]:.4g} (step {found[0]})" for found in lowest], values),
        [_number(_short(max((rate for _, rate in run.points("learning_rate")), default=None))) for run in runs],
        [_number(_time(run)) for run in runs],
    )
    header = ("run", "optimizer", "steps", "last training loss", "lowest evaluation loss", "peak learning rate", "time")
    return _table("Runs", header, list(zip(*columns, strict=True)))


def layers_table(run: Run) -> str:
    """Every layer of a run that is stiff or starved for its kind at the last logging step, and what would be normal."""
    names = run.parameters()
    short = dict(zip(names, short_names(names), strict=True))
    rows = [
        (
            _text(what),
            _text(short[layer.name]),
            _text(layer.kind),
            _number(f"{layer.value:.2e}"),
            _number(f"{layer.median / ODD:.1e} to {layer.median * ODD:.1e}"),
            _number(_times(layer)),
            _number(str(layer.others)),
        )
        for what, layers in (("stiff", stiffest(run)), ("starved", most_starved(run)))
        for layer in layers
    ]
    header = ("finding", "layer", "kind", "value", "normal", "× median", "layers of this kind")
    return _table(f"Odd layers of {run.label}", header, rows) if rows else ""


def coverage_table(coverage: dict[str, Any]) -> str:
    """The share of each kind of curvature, and every parameter in a list that opens."""
    kinds = [
        (
            _text(row["kind"]),
            _number(f"{row['parameters']:,}"),
            _number(f"{row['numbers']:,}"),
            (f'<span class="bar" style="width:{100 * row["share"]:.0f}px"></span> {row["share"]:.1%}', True),
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
    table = _table("Kinds of curvature", ("kind of curvature", "parameters", "numbers", "share"), kinds)
    details = _table("All parameters", ("name", "shape", "kind", "modules"), parameters)
    return f"{table}<details><summary>all {len(parameters)} parameters</summary>{details}</details>"


def config_table(runs: Sequence[Run]) -> str:
    """One column a run that has options, one row an option; bold where they differ."""
    runs = [run for run in runs if run.config]
    keys = dict.fromkeys(key for run in runs for key in run.config if key != "version")
    rows, differs = [], []
    for key in keys:
        values = [_plain(run.config[key]) if key in run.config else "" for run in runs]
        rows.append((_code(key), *map(_text, values)))
        differs.append(len(set(filter(None, values))) > 1)
    return _table("Options", ("option", *(run.label for run in runs)), rows, differs)


def _marked(texts: Sequence[str], values: Sequence[float | None]) -> list[Cell]:
    """Numbers of which the lowest is the best; nothing is marked where there is nothing to compare."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    best = min(known) if len(known) > 1 else None
    mark = ' <span class="best">best</span>'
    return [
        (escape(text) + (mark if best is not None and value == best else ""), True)
        for text, value in zip(texts, values, strict=True)
    ]


def _table(name: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], marked: Sequence[bool] = ()) -> str:
    numeric = [any(row[k][1] for row in rows) for k in range(len(header))]
    head = "".join(_cell("th", escape(text), number) for text, number in zip(header, numeric, strict=True))
    body = "".join(
        f"<tr{' class=differs' if i < len(marked) and marked[i] else ''}>"
        + "".join(_cell("td", *cell) for cell in row)
        + "</tr>"
        for i, row in enumerate(rows)
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(name)}">{table}</div>'


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
    return f"{layer.times_median:.0f}" if layer.times_median >= 10 else f"{layer.times_median:.2f}"


def _steps(run: Run) -> str:
    if not run.state:
        return ""
    done, most = (run.state.get(key, "") for key in ("global_step", "max_steps"))
    return f"{done} / {most}" if most else f"{done}"


def _time(run: Run) -> str:
    logged = [entry[SECONDS] for entry in run.history if SECONDS in entry]
    seconds = max(logged) if run.times == "logged" else last_known(run, "train_runtime")
    return "" if seconds is None else duration(seconds)


def duration(seconds: float) -> str:
    """In the two units that matter."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
