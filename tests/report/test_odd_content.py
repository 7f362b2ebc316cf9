"""Whatever names and numbers are in the files of a run: one page, in which they are all shown as they are."""

from __future__ import annotations

import json
import math

import pytest

from adafisher_hf.cli import main
from adafisher_hf.config.adafisher import CONFIG_NAME, AdaFisherConfig
from adafisher_hf.report.curves import draw_logged, draw_loss, draw_spread
from adafisher_hf.report.folders import read_runs
from adafisher_hf.report.heatmaps import color_scale, draw_heat_map
from adafisher_hf.report.layers import spread_panels
from adafisher_hf.report.vega import LIGHT, plain, png
from tests.report.runs import name_of, write_run

NAMES = [
    r"$x^{$", "$a$", r"\frac", "_hidden", "_", "a" * 3000, "%s{}", "<b>&", "line\nbreak", "tab\t", "\x00", "日本語", "",
    "\ud800",
]  # fmt: skip
NUMBERS = [1e308, -1e308, 5e-324, 1e-308, math.inf, -math.inf, math.nan, 10**400, -(10**30), 0, 1.0]


def written(capsys, *folders):
    assert main(["report", *map(str, folders)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return (folders[0] / "report.html").read_text()


def curvature(names, value=1.0, steps=2):
    row = {"mean": value, "log_spread": 0.5, "update": 0.5, "weight": 2.0}
    lines = [{"step": s, "parameters": {name: {**row, "kind": name} for name in names}} for s in range(1, steps + 1)]
    return "\n".join(map(json.dumps, lines))


def drawn(spec):
    """Fails where Vega cannot draw it."""
    assert png(spec, "title", LIGHT).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:8]))
def test_any_name_of_a_parameter_and_of_a_kind(tmp_path, name):
    folder = write_run(tmp_path / "run", curvature=curvature([name, "fine.weight"]), coverage=None)
    run = read_runs([folder])[0]
    spread, heat = draw_spread(run, top=1.0), draw_heat_map(run, "mean", color_scale([run], "mean"), "mean")
    assert "fine.weight (1)" in spread["encoding"]["color"]["scale"]["domain"]
    assert f"{plain(name)} (1)" in spread["encoding"]["color"]["scale"]["domain"]
    drawn(spread)
    drawn(heat)


def test_all_these_names_on_one_page(tmp_path, capsys):
    names = NAMES
    history = [{"step": s, **{f"eval_{name}": 1.0 * s for name in names}, "eval_loss": 1.0} for s in (1, 2)]
    for order in (1, -1):  # a page has room for some metrics
        history = [dict(list(entry.items())[::order]) for entry in history]
        rows = {"kinds": [], "parameters": [{"name": n, "shape": [1], "kind": n, "owners": [n]} for n in names]}
        state = json.dumps({"log_history": history})
        folder = write_run(tmp_path / "run", curvature=curvature(names), coverage=json.dumps(rows), state=state)
        written(capsys, folder)


LABELS = ["$x^{$", "_run", "a" * 250, "%s{}", r"\alpha", "x$", "x%"]


def test_any_name_of_a_folder(tmp_path, capsys):
    folders = [write_run(tmp_path / label, curvature=None) for label in LABELS]
    page = written(capsys, *folders)
    assert all(label in page for label in LABELS)
    runs = read_runs(folders)
    for spec in (draw_loss(runs), draw_logged(runs, "learning_rate", "rate")):
        assert spec["encoding"]["color"]["scale"]["domain"] == LABELS
        drawn(spec)


def test_runs_with_names_alike_have_pictures_of_their_own(tmp_path):
    runs = read_runs([write_run(tmp_path / label) for label in ("x$", "x%", "x_", "a" * 200, "a" * 201)])
    assert len({panel.file for panel in spread_panels(runs)}) == 5
    assert all(len(panel.file) < 100 for panel in spread_panels(runs))


def test_any_number_of_a_layer(tmp_path, capsys):
    figures = ("mean", "log_spread", "update", "weight")
    names = [f"{figure} {i}" for figure in figures for i in range(len(NUMBERS))]
    lines = [json.loads(line) for line in curvature(names).splitlines()]
    for figure in figures:
        for i, value in enumerate(NUMBERS):
            lines[1]["parameters"][f"{figure} {i}"][figure] = value
    written(capsys, write_run(tmp_path / "run", curvature="\n".join(map(json.dumps, lines)), coverage=None))


KEYS = ["loss", "eval_loss", "eval_accuracy", "learning_rate", "grad_norm", "train_runtime"]


@pytest.mark.parametrize("value", NUMBERS)
def test_any_number_of_the_log(tmp_path, value):
    later = [{"step": 1, "x": 1.0}, {"step": 2, "x": value, "eval_loss": value}]
    for history in ([{"step": 1, "x": value, "loss": value}], later):
        run = read_runs([write_run(tmp_path / "run", state=json.dumps({"log_history": history}))])[0]
        for log_scale in (False, True):
            drawn(draw_logged([run], "x", "x", log_scale=log_scale))
        drawn(draw_loss([run]))


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", NUMBERS)
def test_any_number_of_the_log_on_a_page(tmp_path, capsys, key, value):
    for history in ([{"step": 1, key: value}], [{"step": 1, key: 1.0}, {"step": 2, key: value}]):
        written(capsys, write_run(tmp_path / "run", state=json.dumps({"log_history": history}), curvature=None))


@pytest.mark.slow
@pytest.mark.parametrize("figure", ["mean", "log_spread", "update", "weight"])
@pytest.mark.parametrize("value", NUMBERS)
def test_any_number_of_a_layer_on_a_page(tmp_path, capsys, figure, value):
    lines = [json.loads(line) for line in curvature(["a", "b"]).splitlines()]
    lines[1]["parameters"]["a"][figure] = value
    curves = "\n".join(map(json.dumps, lines))
    written(capsys, write_run(tmp_path / "run", curvature=curves, coverage=None, state=None))


@pytest.mark.parametrize("value", [*NUMBERS, "x", None, [], {}])
@pytest.mark.parametrize("column", ["parameters", "numbers", "share"])
def test_any_number_of_the_coverage(tmp_path, capsys, column, value):
    row = {"kind": "linear", "parameters": 1, "numbers": 1, "share": 1.0, column: value}
    content = json.dumps({"kinds": [row], "parameters": []})
    written(capsys, write_run(tmp_path / "run", coverage=content, state=None, curvature=None))


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.mark.parametrize("part", ["state", "curvature", "coverage", "config"])
@pytest.mark.parametrize("content", [DEEP, "[" * 100_000, "é".encode("latin-1"), b"\xff\xfe{\x00}\x00", b"\x80"])
def test_what_is_too_deep_or_in_another_encoding_is_a_note(tmp_path, capsys, part, content):
    nothing = dict.fromkeys(("state", "curvature", "coverage", "config"))
    page = written(capsys, write_run(tmp_path / "run", **{**nothing, part: content}))
    assert name_of(part) in page


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (DEEP, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"gamma": "é"}'.encode("latin-1"), "is not UTF-8"),
        ('{"gamma": 0.5}'.encode("utf-16"), "is not UTF-8"),
        (b"\x80\x81", "is not UTF-8"),
        (b'{"gamma": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b'{"gamma": 1e999}', "gamma must be a number"),
        (b'{"update_interval": ' + b"9" * 4000 + b".5}", "update_interval must be an integer"),
        (b'{"gamma": ' + b"9" * 4000 + b"}", "gamma must be a number"),
    ],
)
def test_a_config_that_is_too_deep_or_in_another_encoding_is_one_error(tmp_path, content, message):
    (tmp_path / CONFIG_NAME).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        AdaFisherConfig.from_optim_args(f"config={tmp_path}")
    assert str(tmp_path) in str(caught.value) and len(str(caught.value)) < 1000


def test_a_config_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / CONFIG_NAME).write_bytes('{"gamma": 0.5}'.encode("utf-8-sig"))
    assert AdaFisherConfig.from_pretrained(tmp_path).gamma == 0.5
