"""One HTML page with everything in it: style, tables, and every picture twice, for light and dark."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape

from .findings import ODD, first_broken_step
from .panels import Panel, layer_panels, spread_panels, training_panels
from .run import Run
from .style import STYLE
from .tables import config_table, coverage_table, layers_table, runs_table
from .theme import DARK, LIGHT, as_svg

NOTHING_ODD = f"No layer is {ODD:g} times as stiff as the median of its kind at the last step, or as starved."
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
</body>
</html>
"""


def render(runs: Sequence[Run]) -> tuple[str, list[Panel]]:
    """The page, and the pictures that are in it."""
    training, layers, spreads = training_panels(runs), layer_panels(runs), spread_panels(runs)
    parts = [
        _notes(runs),
        _card(runs_table(runs)),
        _section("Training", _grid(training)),
        _section("Layers", "".join(_layers(run, panels, len(runs) > 1) for run, panels in layers)),
        _section("Spread of curvature by kind of layer", _grid(spreads)),
        _section("Which curvature each parameter gets", _coverages(runs)),
        _section("Options of the optimizer", _card(config_table(runs)) if any(run.config for run in runs) else ""),
    ]
    title = f"Training report: {', '.join(run.label for run in runs)}"
    page = PAGE.format(title=escape(title), style=STYLE, content="\n".join(filter(None, parts)))
    return page, [*training, *(panel for _, panels in layers for panel in panels), *spreads]


def _notes(runs: Sequence[Run]) -> str:
    notes = []
    for run in runs:
        broken = first_broken_step(run)
        of_run = [f"the loss was not finite at step {broken}"] if broken is not None else []
        notes += [f"<li><b>{escape(run.label)}</b>: {escape(note)}</li>" for note in [*of_run, *run.notes]]
    return f'<div class="card note"><b>Before you read on</b><ul>{"".join(notes)}</ul></div>' if notes else ""


def _layers(run: Run, panels: list[Panel], named: bool) -> str:
    heading = f"<h3>{escape(run.label)}</h3>" if named else ""
    table = layers_table(run)
    found = "Odd ones at the last step, against the median of their kind:" if table else NOTHING_ODD
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
    light, dark = (_data_uri(as_svg(panel.draw(theme))) for theme in (LIGHT, DARK))
    return (
        f"<figure><h3>{escape(panel.title)}</h3>"
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(panel.title)}"></picture>'
        f"<figcaption>{escape(panel.hint)}</figcaption></figure>"
    )


def _data_uri(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
