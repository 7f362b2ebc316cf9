"""What is drawn is what was logged."""

import csv
import io
import json

import pytest
import vl_convert

from adafisher_hf.report.curves import draw_logged, draw_loss, draw_spread, layers_by_kind
from adafisher_hf.report.folders import read_runs
from adafisher_hf.report.heatmaps import MOST_COLUMNS, color_scale, draw_heat_map
from adafisher_hf.report.vega import DARK, LIGHT, config, png
from tests.report.runs import LAYERS, STEPS, mean, write_run


@pytest.fixture
def run(tmp_path):
    return read_runs([write_run(tmp_path / "news")])[0]


def rows(spec):
    return list(csv.DictReader(io.StringIO(spec["data"]["values"])))


def svg(spec, theme):
    return vl_convert.vegalite_to_svg({**spec, "width": 300, "config": config(theme)})


def test_heat_map_has_a_row_a_layer_in_the_models_order(run):
    scale = color_scale([run], "mean")
    spec = draw_heat_map(run, "mean", scale, "mean curvature")
    table = rows(spec)
    assert [row["layer"] for row in table] == ["embed_tokens", "0 up_proj", "1 up_proj"]
    for i, row in enumerate(table):
        assert [float(row[f"step {step}"]) for step in STEPS] == pytest.approx([mean(i, step) for step in STEPS])
    assert spec["encoding"]["y"]["scale"]["domain"] == ["embed_tokens", "0 up_proj", "1 up_proj"]
    assert scale == (mean(0, 30), mean(2, 10))
    assert svg(spec, LIGHT).count("up_proj</text>") == 2


def test_unknown_and_zero_cells_are_empty_not_drawn_as_low(tmp_path):
    lines = [{"a": {"mean": None}, "b": {"mean": 1.0}}, {"a": {"mean": 0.0}}, {"a": {"mean": 2.0}, "b": {"mean": 1.0}}]
    text = "\n".join(json.dumps({"step": step, "parameters": row}) for step, row in enumerate(lines, 1))
    run = read_runs([write_run(tmp_path, curvature=text)])[0]
    spec = draw_heat_map(run, "mean", color_scale([run], "mean"), "")
    assert [list(row.values())[1:] for row in rows(spec)] == [["", "", "2"], ["1", "", "1"]]


def test_a_long_run_keeps_its_last_column(tmp_path):
    lines = [{"step": step, "parameters": {"a": {"mean": float(step)}}} for step in range(1, 502)]
    run = read_runs([write_run(tmp_path, curvature="\n".join(map(json.dumps, lines)))])[0]
    (row,) = rows(draw_heat_map(run, "mean", (1, 501), ""))
    assert len(row) - 1 <= MOST_COLUMNS and row["step 501"] == "501"


def test_loss_of_two_runs(run, tmp_path):
    other = read_runs([write_run(tmp_path / "other", state='{"log_history": [{"step": 4, "loss": 1.0}]}')])[0]
    drawn = {}
    for row in rows(draw_loss([run, other])):
        drawn.setdefault((row["run"], row["split"]), []).append((float(row["step"]), float(row["loss"])))
    assert drawn == {
        ("news", "training"): run.points("loss"),
        ("news", "evaluation"): run.points("eval_loss"),
        ("other", "training"): [(4, 1.0)],
    }


def test_loss_by_time_is_in_a_unit_that_fits(tmp_path):
    for seconds, column in ((90, "seconds"), (600, "minutes"), (36000, "hours")):
        history = [{"step": 5, "loss": 2.0, "seconds": seconds / 2}, {"step": 10, "loss": 1.0, "seconds": seconds}]
        run = read_runs([write_run(tmp_path / column, state=json.dumps({"log_history": history}))])[0]
        length = {"seconds": 1, "minutes": 60, "hours": 3600}[column]
        assert [float(row[column]) for row in rows(draw_loss([run], "seconds"))] == [
            seconds / 2 / length,
            seconds / length,
        ]


def test_a_log_scale_is_only_for_what_is_above_zero(run, tmp_path):
    assert draw_logged([run], "grad_norm", "", log_scale=True)["encoding"]["y"]["scale"] == {"type": "log"}
    state = '{"log_history": [{"step": 1, "grad_norm": 1.0}, {"step": 2, "grad_norm": -1.0}]}'
    below = read_runs([write_run(tmp_path / "below", state=state)])[0]
    assert "type" not in draw_logged([below], "grad_norm", "", log_scale=True)["encoding"]["y"]["scale"]


def test_spread_is_the_mean_over_the_layers_of_a_kind(run):
    assert layers_by_kind(run) == {"linear": list(LAYERS[1:]), "embedding": [LAYERS[0]]}
    drawn = {row["kind"]: row for row in rows(draw_spread(run, top=1.0))}
    assert {key: float(drawn["linear (2)"][key]) for key in ("mean", "least", "largest")} == pytest.approx(
        {"mean": 0.15, "least": 0.1, "largest": 0.2}
    )
    assert float(drawn["embedding (1)"]["mean"]) == 0


def test_a_picture_is_the_same_each_time_and_has_the_colours_of_its_theme(run):
    spec = draw_loss([run])
    assert png(spec, "Loss", LIGHT) == png(spec, "Loss", LIGHT)
    light, dark = svg(spec, LIGHT), svg(spec, DARK)
    assert DARK.background in dark and DARK.background not in light
    assert DARK.series[0] in dark and LIGHT.series[0] in light
