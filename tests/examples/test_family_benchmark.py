"""examples/benchmarks/family.py: every arm trains, and the whole way from tuning to the table on a model of no size."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import family
from benchmarks.harness import timing
from benchmarks.harness.arms import WEIGHT_DECAY, Point
from benchmarks.harness.contestants import ARMS
from benchmarks.harness.jobs import TUNING_SEED
from benchmarks.harness.news import NewsProblem
from benchmarks.harness.relatives import relatives
from benchmarks.harness.runner import CLIP
from benchmarks.harness.tuning import tune
from data.bbc import load_articles
from errors import InputError
from tests.models import llama

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
BY_NAME = {arm.name: arm for arm in relatives(2)}


def losses_of(arm, steps=12):
    model = llama()
    optimizer = arm.at(arm.start).build(model, arm.start.lr)
    covered = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(covered) == sorted(id(p) for p in model.parameters())
    ids = torch.arange(12).view(2, 6)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in {arm.name for arm in ARMS}])
def test_every_new_arm_trains(name):
    losses = losses_of(BY_NAME[name], steps=40)
    assert losses[-1] < losses[0] - 0.1


def test_arms_that_both_benchmarks_have_are_the_same():
    """So that the runs of one are those of the other."""
    shared = [arm for arm in ARMS if arm.name in BY_NAME]
    assert len(shared) == 6 and all(BY_NAME[arm.name] is arm for arm in shared)


def test_what_adamqlr_is_tuned_by():
    arm = BY_NAME["AdamQLR"].at(Point(0.03, (0.9, 0.999), 1.0))
    optimizer = arm.build(llama(), 0.03)
    assert (optimizer.config.lr_clip, optimizer.config.beta2) == (0.03, 0.999)
    found = {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert found == {(1.0, 0.03 * WEIGHT_DECAY), (1.0, 0.0)}
    assert {point.ratio for point in walked(arm)} == {1.0}  # another would change nothing


def walked(arm):
    """What is tried where 0.1 is the best rate."""
    search, tried = tune(arm, arm.start), []
    points = next(search)
    while points:
        tried += points
        try:
            points = search.send([abs(point.lr - 0.1) for point in points])
        except StopIteration:
            points = []
    return tried


@pytest.fixture
def small(monkeypatch):
    some = load_articles()[:60]
    monkeypatch.setattr("benchmarks.harness.news.load_articles", lambda: some)
    problem = NewsProblem(batch_size=2, block_size=16, vocabulary=300, evaluation_blocks=2, architecture=SIZES)
    monkeypatch.setattr(family, "make_problem", lambda name, width: problem)
    monkeypatch.setattr(timing, "STEPS", 10)


def test_from_tuning_to_the_table(tmp_path, monkeypatch, capsys, small):
    names = ["AdamW", "FAdam", "SIRFShampoo, diagonal", "AdamQLR", "Muon"]
    flags = ["--steps", "3", "--seeds", "2", "--out", str(tmp_path)]
    family.main([*flags, "--arms", *names])
    folder = tmp_path / "news-128-3"
    table = (folder / "table.md").read_text()
    assert table in capsys.readouterr().out and "### The family: Llama, BBC News, 0.0 M parameters, 3 steps" in table
    for name in names:
        assert table.count(f"\n| {name} |") == 3  # quality, cost, tuning
    stored = json.loads((folder / "runs.json").read_text())["runs"]
    assert {entry["setting"]["arm"]["name"] for entry in stored} == set(names)
    assert all((entry["setting"]["seed"] == TUNING_SEED) == (entry["setting"]["split"] == "tune") for entry in stored)
    assert (folder / "loss_curves.png").exists() and (folder / "chosen.json").exists()

    # And again, from what is kept; elsewhere from the runs of the other folder.
    monkeypatch.setattr("benchmarks.harness.jobs.train", lambda *args, **kwargs: pytest.fail("a run was made again"))
    family.main([*flags, "--arms", *names])
    assert (folder / "table.md").read_text() == table
    elsewhere = ["--steps", "3", "--seeds", "2", "--out", str(tmp_path / "other"), "--stage", "equal"]
    family.main([*elsewhere, "--arms", *names, "--runs", str(folder / "runs.json")])
    assert (tmp_path / "other/news-128-3/runs.json").read_text() == (folder / "runs.json").read_text()


def test_wrong_calls(tmp_path, small):
    with pytest.raises(InputError, match="--runs .*nothing.json: no such file"):
        family.main(["--runs", str(tmp_path / "nothing.json"), "--out", str(tmp_path)])
    with pytest.raises(InputError, match="no arm is tuned yet"):
        family.main(["--stage", "report", "--out", str(tmp_path)])
