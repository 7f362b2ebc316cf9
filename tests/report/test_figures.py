"""What is drawn is what was logged."""

import json
import math

import numpy as np
import pytest

from adafisher_hf.report.curves import draw_loss, draw_spread, layers_by_kind
from adafisher_hf.report.heatmaps import color_scale, draw_heat_map
from adafisher_hf.report.run import read_runs
from adafisher_hf.report.theme import DARK, LIGHT, as_svg
from tests.report.runs import LAYERS, STEPS, mean, write_run


@pytest.fixture
def run(tmp_path):
    return read_runs([write_run(tmp_path / "news")])[0]


def test_heat_map_has_a_row_a_layer_in_the_models_order(run):
    scale = color_scale([run], "mean")
    axes = draw_heat_map(run, "mean", scale, "mean curvature", LIGHT).axes[0]
    cells = axes.collections[0].get_array().reshape(3, 3)
    assert np.allclose(cells, [[mean(i, step) for step in STEPS] for i in range(3)])
    labels = {
        tick.get_text(): position for tick, position in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)
    }
    assert labels == {"embed_tokens": 0.5, "0 up_proj": 1.5, "1 up_proj": 2.5}
    assert axes.yaxis_inverted()
    assert scale == (mean(0, 30), mean(2, 10))


def test_unknown_and_zero_cells_are_masked_not_drawn_as_low(tmp_path):
    rows = [{"a": {"mean": None}, "b": {"mean": 1.0}}, {"a": {"mean": 0.0}}, {"a": {"mean": 2.0}, "b": {"mean": 1.0}}]
    lines = "\n".join(json.dumps({"step": step, "parameters": row}) for step, row in enumerate(rows, 1))
    run = read_runs([write_run(tmp_path, curvature=lines)])[0]
    scale = color_scale([run], "mean")
    cells = draw_heat_map(run, "mean", scale, "", LIGHT).axes[0].collections[0].get_array().reshape(2, 3)
    shown = [[None if math.isnan(cell) else cell for cell in row] for row in np.ma.filled(cells, math.nan)]
    assert shown == [[None, None, 2.0], [1.0, None, 1.0]]


def test_loss_of_two_runs(run, tmp_path):
    other = read_runs([write_run(tmp_path / "other", state='{"log_history": [{"step": 4, "loss": 1.0}]}')])[0]
    lines = draw_loss([run, other], LIGHT).axes[0].lines
    drawn = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in lines}
    assert drawn == {
        "news": run.points("loss"),
        "news, evaluation": run.points("eval_loss"),
        "other": [(4, 1.0)],
    }


def test_spread_is_the_mean_over_the_layers_of_a_kind(run):
    assert layers_by_kind(run) == {"linear": list(LAYERS[1:]), "embedding": [LAYERS[0]]}
    lines = {line.get_label(): line.get_ydata() for line in draw_spread(run, LIGHT, top=1.0).axes[0].lines}
    assert np.allclose(lines["linear (2)"], 0.15)
    assert np.allclose(lines["embedding (1)"], 0.0)


def test_an_image_is_the_same_each_time_and_has_the_colours_of_its_theme(run):
    light, dark = as_svg(draw_loss([run], LIGHT)), as_svg(draw_loss([run], DARK))
    assert as_svg(draw_loss([run], LIGHT)) == light
    assert DARK.background.encode() in dark and DARK.background.encode() not in light
