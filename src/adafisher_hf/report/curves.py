"""Lines over steps or time: losses and other logged numbers of several runs, and the spread of curvature of one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .run import SMALLEST, Run
from .vega import HEIGHT, Spec, plain, table

LEGEND: Spec = {
    "orient": "top",
    "title": None,
    "symbolType": "stroke",
    "columns": {"expr": "width < 420 ? 1 : 2"},
    "labelLimit": {"expr": "width < 420 ? width - 30 : width / 2 - 30"},
}
UNITS = (("hours", 3600.0, 7200.0), ("minutes", 60.0, 120.0), ("seconds", 1.0, 0.0))  # with length, and from when on
FEW = 30  # points of a line that are shown as dots too
DOT: Spec = {"filled": True, "opacity": 1}
SPLITS = ("training", "evaluation")


def draw_loss(runs: Sequence[Run], x: str = "step") -> Spec:
    """Training loss as lines and evaluation loss as dots on a dashed line, one colour a run.

    Args:
        runs: of the report.
        x: ``step`` or ``seconds``.
    """
    points = [
        (place, plain(run.label), split, value)
        for run in runs
        for split, key in zip(SPLITS, ("loss", "eval_loss"), strict=True)
        for place, value in run.points(key, by=x)
    ]
    name, length = ("step", 1) if x == "step" else _unit(max((place for place, *_ in points), default=0))
    rows = [(place / length, run, split, value) for place, run, split, value in points]
    known = [split for split in SPLITS if any(row[2] == split for row in rows)]
    spec = _lines(table((name, "run", "split", "loss"), rows, ("run", "split")), name, "loss", runs)
    dash = {
        "field": "split",
        "scale": {"domain": list(SPLITS), "range": [[1, 0], [5, 3]]},
        "legend": {**LEGEND, "values": known, "symbolStrokeColor": "#7d8590"} if len(known) > 1 else None,
    }
    spec["layer"][0]["encoding"] = {"strokeDash": dash}
    if "evaluation" in known:
        dots = {"mark": {"type": "point", **DOT, "size": 30}, "transform": [{"filter": "datum.split != 'training'"}]}
        spec["layer"].insert(1, dots)
    return spec


def draw_logged(runs: Sequence[Run], key: str, ylabel: str, log_scale: bool = False) -> Spec:
    """One logged number, one line a run; on a log scale if asked for, where all of it is above zero."""
    rows = [(step, plain(run.label), value) for run in runs for step, value in run.points(key)]
    spec = _lines(table(("step", "run", "value"), rows, ("run",)), "step", "value", runs)
    spec["encoding"]["y"]["title"] = plain(ylabel)
    if log_scale and rows and all(value > SMALLEST for *_, value in rows if not math.isnan(value)):
        spec["encoding"]["y"] |= {"scale": {"type": "log"}, "axis": {"tickCount": 5, "format": "~g"}}
    if len(rows) < FEW * len(runs):
        spec["layer"][0]["mark"]["point"] = {"size": 14}
    return spec


def draw_spread(run: Run, top: float) -> Spec:
    """Spread of log-curvature by kind of layer: the mean over its layers, and a band from the least to the largest.

    Args:
        run: with curvature.
        top: of the axis, the same for all runs.
    """
    rows = []
    kinds = {f"{plain(kind)} ({len(names)})": names for kind, names in layers_by_kind(run).items()}
    for kind, names in kinds.items():
        at_step = zip(*(run.layer(name, "log_spread") for name in names), strict=True)
        for line, values in zip(run.curvature, at_step, strict=True):
            known = [value for value in values if not math.isnan(value)] or [math.nan]
            rows.append((line["step"], kind, sum(known) / len(known), min(known), max(known)))
    data = table(("step", "kind", "mean", "least", "largest"), rows, ("kind",))
    spec = _lines(data, "step", "mean", [run])
    spec["encoding"]["color"] = {"field": "kind", "scale": {"domain": list(kinds)}, "legend": LEGEND}
    spec["encoding"]["y"] |= {"title": "spread (decades)", "scale": {"domain": [0, top], "clamp": True}}
    band = {"y": {"field": "least", "type": "quantitative"}, "y2": {"field": "largest"}}
    spec["layer"].insert(0, {"mark": {"type": "area", "opacity": 0.16}, "encoding": band})
    return spec


def layers_by_kind(run: Run) -> dict[str, list[str]]:
    """The parameters that have curvature, by what kind it is, those with most parameters first."""
    kinds: dict[str, list[str]] = {}
    last = {name: row.get("kind", "?") for line in run.curvature for name, row in line["parameters"].items()}
    for name in run.parameters():
        kinds.setdefault(str(last[name]), []).append(name)
    return dict(sorted(kinds.items(), key=lambda item: -len(item[1])))


def _lines(data: Spec, x: str, y: str, runs: Sequence[Run]) -> Spec:
    """A line for each colour, and a cursor that finds the nearest point and tells its values."""
    labels = [plain(run.label) for run in runs]
    nearest = {
        "type": "point",
        "nearest": True,
        "on": "pointerover",
        "clear": "pointerout",
        "fields": [*_texts(data), x],
    }
    cursor = {
        "mark": {"type": "point", **DOT, "size": 70, "tooltip": {"content": "data"}},
        "params": [{"name": "nearest", "select": nearest}],
        "encoding": {"opacity": {"condition": {"param": "nearest", "empty": False, "value": 1}, "value": 0}},
    }
    return {
        "data": data,
        "height": HEIGHT,
        "encoding": {
            "x": {"field": x, "type": "quantitative", "title": x, "axis": {"grid": False}},
            "y": {"field": y, "type": "quantitative", "title": y, "scale": {"zero": False}},
            "color": {"field": "run", "scale": {"domain": labels}, "legend": LEGEND if len(labels) > 1 else None},
        },
        "layer": [{"mark": {"type": "line", "strokeWidth": 1.8}}, cursor],
    }


def _texts(data: Spec) -> list[str]:
    return [column for column, kind in data["format"]["parse"].items() if kind == "string"]


def _unit(seconds: float) -> tuple[str, float]:
    return next((name, length) for name, length, least in UNITS if seconds >= least)
