"""Reading a run's folder: everything that is there, and a note for everything that is not."""

import json
import math

import pytest

from adafisher_hf.report.findings import best_evaluation, first_broken_step, most_starved, stiffest
from adafisher_hf.report.folders import read_runs
from tests.report.runs import LAYERS, STEPS, files, mean, name_of, write_run

PARTS = ("state", "curvature", "coverage", "config")


def read(folder):
    return read_runs([folder])[0]


def test_a_whole_run(tmp_path):
    run = read(write_run(tmp_path / "news"))
    assert (run.label, run.notes) == ("news", [])
    assert run.points("loss") == [(10, 7.0), (20, 6.0), (30, 5.0)]
    assert run.points("eval_loss") == [(20, 6.5), (30, 6.25)]
    assert run.parameters() == list(LAYERS)
    for i, name in enumerate(LAYERS):
        assert run.layer(name, "mean") == [mean(i, step) for step in STEPS]
        assert run.layer(name, "update_ratio") == [0.005] * 3
    assert run.config["damping"] == 0.1


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "missing"), ("", ""), (b"\xff\xfe\x00", ""), ("[1, 2]", ""), ("null", "")],
    ids=["missing", "empty", "binary", "list", "null"],
)
def test_what_is_missing_or_damaged_is_one_note_and_the_rest_stays(tmp_path, part, content, words):
    run = read(write_run(tmp_path, **{part: content}))
    assert len(run.notes) == 1 or (part == "curvature" and len(run.notes) == 2)
    assert name_of(part) in run.notes[0]
    assert words in run.notes[0]
    there = {"state": run.history, "curvature": run.curvature, "coverage": run.coverage, "config": run.config}
    assert {name for name, found in there.items() if not found} == {part}


@pytest.mark.parametrize("part", PARTS)
def test_a_file_cut_anywhere_is_read_as_far_as_it_goes(tmp_path, part):
    whole = files()[name_of(part)]
    for end in range(0, len(whole) - 1, 7):
        run = read(write_run(tmp_path, **{part: whole[:end]}))
        # All lines that ended, or lack no more than the end of the line.
        lines = sum(end >= i for i, character in enumerate(whole) if character == "\n")
        assert len(run.curvature) == (lines if part == "curvature" else 3)
        at_a_boundary = part == "curvature" and end and (whole[:end].endswith("\n") or whole[end] == "\n")
        assert bool(run.notes) != bool(at_a_boundary)


def test_values_of_the_wrong_type_are_not_known(tmp_path):
    row = {"mean": "big", "log_spread": None, "update": 10**400, "weight": [1]}
    lines = [{"step": 1, "parameters": {"a": row, "b": {}}}, {"step": 10**400, "parameters": {}}, {"step": True}]
    history = [{"step": 1, "loss": "nan"}, {"step": 2, "loss": math.nan}, {"loss": 1.0}, 3]
    run = read(
        write_run(
            tmp_path,
            curvature="\n".join(map(json.dumps, lines)),
            state=json.dumps({"log_history": history}),
            coverage='{"kinds": [{"kind": 1}], "parameters": []}',
        )
    )
    assert all(math.isnan(run.layer(name, figure)[0]) for name in "ab" for figure in ("mean", "update_ratio"))
    assert [step for step, _ in run.points("loss")] == [2]
    assert first_broken_step(run) == 2
    assert (run.coverage, len(run.notes)) == ({}, 2)


def test_the_latest_checkpoint_stands_in_for_the_folder(tmp_path):
    state = {"global_step": 9, "log_history": [{"step": 9, "loss": 1.0}]}
    for step, content in ((5, {**state, "global_step": 5}), (9, state), (10, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{" if content is None else json.dumps(content))
    run = read(write_run(tmp_path, state=None))
    assert run.state["global_step"] == 9  # not 5 by the alphabet, not 10 that was cut short
    (note,) = run.notes
    assert note.startswith("checkpoint-10/trainer_state.json is empty or not complete JSON")


def test_later_lines_of_a_step_win_and_steps_are_in_order(tmp_path):
    lines = [{"step": s, "parameters": {"a": {"mean": m}}} for s, m in ((20, 1.0), (10, 2.0), (20, 3.0))]
    run = read(write_run(tmp_path, curvature="\n".join(map(json.dumps, lines))))
    assert run.layer("a", "mean") == [2.0, 3.0]


def test_labels_are_the_shortest_that_differ(tmp_path):
    folders = [write_run(tmp_path / name) for name in ("x/run", "y/run", "y/other")]
    assert [run.label for run in read_runs(folders)] == ["x/run", "y/run", "y/other"]
    assert [run.label for run in read_runs(folders[1:])] == ["run", "other"]


def test_findings_compare_a_layer_with_its_kind(tmp_path):
    kinds = {"a": ("linear", 1.0, 1.0), "b": ("linear", 1.0, 0.1), "c": ("linear", 9.0, 1.0), "n": ("norm", 99.0, 0.01)}
    row = {
        name: {"kind": kind, "mean": mean, "update": update, "weight": 1.0}
        for name, (kind, mean, update) in kinds.items()
    }
    run = read(write_run(tmp_path, curvature=json.dumps({"step": 1, "parameters": row})))
    assert [(layer.name, layer.times_median) for layer in stiffest(run)] == [("c", 9.0)]
    assert [(layer.name, layer.times_median) for layer in most_starved(run)] == [("b", 0.1)]
    assert best_evaluation(run) == (30, 6.25)
