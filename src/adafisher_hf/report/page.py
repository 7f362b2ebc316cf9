"""One HTML page with everything in it: style, scripts, tables, and every picture with its data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from .findings import ODD, first_broken_step
from .layers import layer_panels, spread_panels
from .panels import Panel
from .run import Run
from .tables import config_table, coverage_table, layers_table, runs_table
from .training import training_panels
from .vega import DARK, LIGHT, bundle, config

ODD_ONES = (
    f"All layers that stand out at the last step. Normal is from 1/{ODD:g} to {ODD:g} times the median of the "
    "layers of the same kind. Stiff: more mean curvature than that. Starved: less update for its weight."
)
NOTHING_ODD = f"No layer is {ODD:g} times as stiff as the median of its kind at the last step, or as starved."
NO_KINDS = (
    "Which layers are odd for their kind is not known: a tracker does not keep the kinds. coverage.json has them."
)
NO_TIMES = (
    "No loss by time: the log has no times. CurvatureCallback puts them into it, with any optimizer, and so do "
    "TensorBoard and Weights & Biases."
)
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{content}
</main>
<script type="application/json" id="themes">{themes}</script>
<!-- Vega, Vega-Lite and vega-embed: BSD 3-Clause, University of Washington Interactive Data Lab -->
<script>{bundle}</script>
<script>{script}</script>
</body>
</html>
"""
FIGURE = """<figure data-file="{file}"><h3>{title}</h3>
<div class="plot" role="img" aria-label="{title}. {text}"></div>
<figcaption>{hint}</figcaption>
<details class="data"><summary>Data<span class="unseen"> of the picture: {title}</span></summary>
<p><a class="csv" href="#">CSV</a> <a class="json" href="#">JSON</a></p>
<div class="scroll" tabindex="0" role="group" aria-label="Data: {title}"></div></details>
<script type="application/json">{spec}</script></figure>"""
NO_SCRIPT = (
    '<noscript><p class="card note">Pictures need JavaScript. The folder beside this page has PNG files of them.</p>'
    "</noscript>"
)


class Live(NamedTuple):
    """What a page of a run that goes on says about that.

    Attributes:
        lines: how far each run is.
        every: seconds between two pages.
    """

    lines: list[str]
    every: float


def render(runs: Sequence[Run], live: Live | None = None) -> tuple[str, list[Panel]]:
    """The page, and the pictures that are in it."""
    training, layers, spreads = training_panels(runs), layer_panels(runs), spread_panels(runs)
    parts = [
        _live(live) if live else "",
        NO_SCRIPT,
        _notes(runs),
        _card(runs_table(runs)),
        _section("Training", _grid(training) + _times_missing(training)),
        _section("Layers", "".join(_layers(run, panels, len(runs) > 1) for run, panels in layers)),
        _section("Spread of curvature by kind of layer", _grid(spreads)),
        _section("Which curvature each parameter gets", _coverages(runs)),
        _section("Options of the optimizer", _card(config_table(runs)) if any(run.config for run in runs) else ""),
    ]
    page = PAGE.format(
        title=escape(f"Training report: {', '.join(run.label for run in runs)}"),
        content="\n".join(filter(None, parts)),
        style=_asset("page.css"),
        script=_asset("page.js"),
        bundle=bundle().replace("</script", "<\\/script"),
        themes=_json({"light": config(LIGHT), "dark": config(DARK)}),
    )
    return page, [*training, *(panel for _, panels in layers for panel in panels), *spreads]


def _live(live: Live) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in live.lines)
    box = (
        f'<label><input type="checkbox" checked data-every="{live.every:g}"> a new page every {live.every:g} s</label>'
    )
    return _card(f'<div role="status">{lines}</div>{box}')


def _notes(runs: Sequence[Run]) -> str:
    notes = []
    for run in runs:
        broken = first_broken_step(run)
        of_run = [f"the loss was not finite at step {broken}"] if broken is not None else []
        notes += [f"<li><b>{escape(run.label)}</b>: {escape(note)}</li>" for note in [*of_run, *run.notes]]
    return f'<div class="card note"><b>Before you read on</b><ul>{"".join(notes)}</ul></div>' if notes else ""


def _times_missing(panels: Sequence[Panel]) -> str:
    files = [panel.file for panel in panels]
    return f'<p class="soft">{escape(NO_TIMES)}</p>' if "loss" in files and "loss_by_time" not in files else ""


def _layers(run: Run, panels: list[Panel], named: bool) -> str:
    heading = f"<h3>{escape(run.label)}</h3>" if named else ""
    table = layers_table(run)
    kinds = any("kind" in row for line in run.curvature for row in line["parameters"].values())
    found = ODD_ONES if table else NOTHING_ODD if kinds else NO_KINDS
    return _card(f'{heading}<p class="soft">{found}</p>{table}') + _grid(panels)


def _coverages(runs: Sequence[Run]) -> str:
    """One table for all runs whose models are covered alike."""
    labels: dict[str, list[str]] = {}
    for run in runs:
        if run.coverage:
            labels.setdefault(json.dumps(run.coverage), []).append(run.label)
    return "".join(
        _card((f"<h3>{escape(', '.join(of))}</h3>" if len(runs) > 1 else "") + coverage_table(json.loads(coverage)))
        for coverage, of in labels.items()
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _card(content: str) -> str:
    return f'<div class="card">{content}</div>'


def _grid(panels: Sequence[Panel]) -> str:
    return f'<div class="grid">{"".join(map(_figure, panels))}</div>' if panels else ""


def _figure(panel: Panel) -> str:
    texts = {key: escape(getattr(panel, key)) for key in ("file", "title", "hint", "text")}
    return FIGURE.format(**texts, spec=_json(panel.spec))


def _json(content: Any) -> str:
    """JSON that no HTML parser takes for markup."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
