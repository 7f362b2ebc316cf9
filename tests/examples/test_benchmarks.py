"""The benchmark harness: fair tuning, resumable runs, an honest table."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time

import pytest
import torch
from torch import nn

from adafisher_hf import AdaFisherConfig
from benchmarks import ablation, step_profile
from benchmarks.harness import timing
from benchmarks.harness.arms import ADAMW, WEIGHT_DECAY, Arm, adafisherw, decay_groups, muon, soap
from benchmarks.harness.journal import Journal
from benchmarks.harness.problem import NewsProblem, Scores
from benchmarks.harness.report import Result, draw, results_table, tuning_table
from benchmarks.harness.runner import Run, Training, train, warmup_then_cosine
from benchmarks.harness.timing import Timing, time_arms
from benchmarks.harness.tuning import ABOVE, BELOW, GRID, best, tune
from benchmarks.pretrain import TUNING_SEED, Benchmark
from benchmarks.rounding import round_by_chance
from errors import InputError
from tests.models import llama

ARMS = (ADAMW, Arm("AdaFisherW", adafisherw))


class Regression:
    """A problem that takes no time."""

    def describe(self):
        return {"kind": "regression"}

    def model(self, seed):
        torch.manual_seed(seed)
        return nn.Linear(4, 2)

    def batches(self, seed):
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(8, 4, generator=generator) for _ in itertools.count())

    def loss(self, model, batch):
        return (model(batch) - batch[:, :2]).square().mean()

    def evaluate(self, model, split):
        return Scores(self.loss(model, torch.eye(4) * (2.0 if split == "eval" else 1.0)).item())


def run_with(loss: float, step_ms: float = 10.0) -> Run:
    return Run(curve=[(1, 3.0), (2, loss)], final=loss, step_ms=step_ms, state_bytes_per_parameter=4.0)


def result_with(tuning, finals, equal_time, ratio, **more) -> Result:
    runs = [[run_with(loss) for loss in losses] for losses in (finals, equal_time)]
    return Result(tuning, runs[0], timing=Timing([ratio], 10), equal_time=runs[1], **more)


@pytest.mark.parametrize(
    ("optimum", "beyond"),
    [(3e-3, ()), (1e-2, ABOVE[:1]), (3e-2, ABOVE[:2]), (1.0, ABOVE), (1e-3, BELOW[:1]), (1e-9, BELOW)],
)
def test_grid_grows_only_where_the_best_is_on_its_edge(optimum, beyond):
    losses = tune(lambda lr: abs(math.log(lr / optimum)))
    assert set(losses) == {*GRID, *beyond}
    assert list(losses) == sorted(losses)
    assert best(losses) == min(losses, key=lambda lr: abs(math.log(lr / optimum)))


def test_learning_rate_warms_up_and_ends_near_zero():
    factors = [warmup_then_cosine(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == 1.0
    assert factors[9:] == sorted(factors[9:], reverse=True)
    assert 0 < factors[-1] < 1e-3


def test_arms_decay_matrices_alone():
    matrices, vectors = decay_groups(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (WEIGHT_DECAY, 0.0)
    assert [parameter.dim() for parameter in matrices["params"]] == [2]
    assert [parameter.dim() for parameter in vectors["params"]] == [1, 1, 1]


def test_run_learns_and_counts_the_state():
    run = train(Regression(), ADAMW, lr=0.03, seed=0, steps=60, split="eval")
    assert [step for step, _ in run.curve] == [10, 20, 30, 40, 50, 60]
    assert run.final == run.curve[-1][1] < 0.5 * run.curve[0][1]
    # Two moments of ten float32 numbers, and a counter for each of the two parameters.
    assert run.state_bytes_per_parameter == pytest.approx((2 * 4 * 10 + 2 * 4) / 10)


def test_diverged_run_is_kept_as_such(tmp_path):
    class Exploding(Regression):
        def evaluate(self, model, split):
            return Scores(math.nan, 0.5)

    run = train(Exploding(), ADAMW, lr=0.03, seed=0, steps=6, split="eval")
    assert (run.curve, run.final, run.loss, run.accuracy) == ([], None, math.inf, None)
    diverged = Result({3e-3: 1.0}, [run], timing=Timing([1.0], 10), equal_time=[run])
    assert "diverged" in results_table({"AdamW": diverged}, "AdamW", 6)
    draw({"AdamW": Result({3e-3: 1.0}, [run])}, tmp_path / "empty.png", "title")
    assert (tmp_path / "empty.png").exists()


def test_finished_runs_are_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "STEPS", 10)

    def measure():
        return Benchmark(Regression(), ARMS, steps=6, seeds=2, out=tmp_path).measure()

    first = results_table(measure(), "AdamW", 6)
    stored = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert len({json.dumps(entry["setting"]) for entry in stored}) == len(stored)
    assert {entry["setting"]["split"] for entry in stored if entry["setting"]["seed"] == TUNING_SEED} == {"tune"}
    assert {entry["setting"]["split"] for entry in stored if entry["setting"]["seed"] != TUNING_SEED} == {"eval"}
    assert {entry["setting"]["steps"] for entry in stored if entry["setting"]["split"] == "tune"} == {6}

    for name in ("pretrain.train", "harness.timing.Training"):
        monkeypatch.setattr(f"benchmarks.{name}", lambda *args, **kwargs: pytest.fail("a finished run was made again"))
    assert results_table(measure(), "AdamW", 6) == first


class Racers(Benchmark):
    """Runs that end at their arm's pace: 1 / (speed · steps)."""

    def _run(self, arm, lr, seed, steps, split):
        return run_with(1.0 / (arm.knobs["speed"] * steps))


@pytest.mark.parametrize(("speed", "steps"), [(0.9, None), (1.0, 100), (1.9, 67), (2.5, 50), (100.0, 25)])
def test_shortest_schedule_that_reaches_the_baseline(tmp_path, speed, steps):
    arms = [Arm("slow", adafisherw, {"speed": 1.0}), Arm("fast", adafisherw, {"speed": speed})]
    racers = Racers(Regression(), arms, steps=100, seeds=1, out=tmp_path)
    result = Result({3e-3: 1.0}, racers._runs(arms[1], 3e-3, 100))
    assert racers._steps_to(0.01, arms[1], result) == steps


def test_arms_take_turns_on_the_clock(tmp_path, monkeypatch):
    started = []
    step = Training.step

    def logged(training):
        started.append(training.optimizer.__class__.__name__)
        step(training)

    monkeypatch.setattr(Training, "step", logged)
    rates = {arm.name: 1e-3 for arm in ARMS}
    monkeypatch.setattr(timing, "STEPS", 30)
    timings = time_arms(Regression(), ARMS, rates, tmp_path / "timing.json")
    assert started[2:] == (["AdamW"] * 10 + ["AdaFisherW"] * 10) * 3
    assert all(len(arm.turns) == 3 and min(arm.turns) > 0 for arm in timings.values())
    assert timings == time_arms(Regression(), ARMS, rates, tmp_path / "timing.json")


def test_clock_goes_on_at_the_steady_pace():
    clock = Timing([5.0, 3.0, 1.0], 30)
    assert clock.steady == 0.1
    assert [clock.seconds(steps) for steps in (0, 10, 15, 30, 50)] == pytest.approx([0.0, 5.0, 6.5, 9.0, 11.0])
    assert [clock.steps_within(seconds) for seconds in (0.4, 5.0, 9.05, 11.01)] == [0, 10, 30, 50]


def test_usable_rates_are_those_around_the_best_one():
    assert Result({1e-3: 1.0, 3e-3: 1.2, 6e-3: 1.05, 1e-2: 0.99, 3e-2: 1.0, 1e-1: 2.0}).usable_rates() == (6e-3, 3e-2)


@pytest.mark.parametrize("make", [soap, muon])
def test_peers_train(make):
    model = llama()
    optimizer = Arm("peer", make).build(model, 1e-2)
    covered = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(covered) == sorted(id(p) for p in model.parameters())
    if make is muon:
        outer = {id(p) for group in optimizer.param_groups if not group["use_muon"] for p in group["params"]}
        assert id(model.lm_head.weight) in outer
        assert id(model.model.layers[0].mlp.up_proj.weight) not in outer
    ids = torch.arange(12).view(2, 6)
    losses = []
    for _ in range(12):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


def test_interrupted_benchmark_keeps_what_is_finished(tmp_path):
    journal = Journal(tmp_path / "runs.json")
    journal.run_once({"lr": 1}, lambda: run_with(2.0))

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        journal.run_once({"lr": 2}, killed)
    again = Journal(tmp_path / "runs.json")
    assert again.find({"lr": 1}).final == 2.0
    assert again.find({"lr": 2}) is None
    assert [path.name for path in tmp_path.iterdir()] == ["runs.json"]


@pytest.mark.parametrize("content", ["", "[]", '{"other": 1}'])
def test_foreign_file_is_not_overwritten(tmp_path, content):
    (tmp_path / "runs.json").write_text(content)
    with pytest.raises(InputError, match="not a file of benchmark runs"):
        Journal(tmp_path / "runs.json")


def test_table_says_where_the_grid_was_left():
    results = {
        "AdamW": result_with({3e-3: 2.0, 1e-2: 2.05}, [2.0, 2.2], [2.0, 2.2], 1.0),
        "other": result_with({1e-2: 2.0, 3e-2: 1.0}, [1.0, 1.5], [1.2, 1.6], 1.5, steps_to_baseline=3),
        "behind": result_with({3e-3: 3.0}, [3.0, 3.0], [3.0, 3.0], 1.5),
    }
    table = results_table(results, "AdamW", steps=6)
    assert "| AdamW | 3e-3 | 3e-3 – 1e-2 | 2.100 ± 0.100 | 2.100 ± 0.100 | 6 (× 1.00) | × 1.00 |" in table
    assert "| other | 3e-2 * | 3e-2 – 3e-2 | 1.250 ± 0.250 | 1.400 ± 0.200 | 3 (× 0.50) | × 0.75 |" in table
    assert "| 3.000 ± 0.000 | not reached |  | × 1.50 (1.50) | 4.00 |" in table
    assert "* beyond the common grid 1e-3, 3e-3, 6e-3, 1e-2" in table
    assert "| other |  | 2.000 | 1.000 |" in tuning_table(results)


def test_news_problem_trains_on_none_of_its_evaluation_text():
    one_layer = {"num_hidden_layers": 1}
    problem = NewsProblem(batch_size=2, block_size=32, vocabulary=400, evaluation_blocks=3, architecture=one_layer)
    splits = {name: {tuple(block) for block in blocks.tolist()} for name, blocks in problem._splits.items()}
    assert len(splits["tune"]) == len(splits["eval"]) == 3
    assert not splits["tune"] & splits["eval"]
    assert not (splits["tune"] | splits["eval"]) & splits["train"]
    first, again = next(problem.batches(0)), next(problem.batches(0))
    assert first.shape == (2, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, next(problem.batches(1)))
    model = problem.model(0)
    assert problem.evaluate(model, "tune").loss == pytest.approx(math.log(400), rel=0.1)
    assert model.training


def test_counted_work_of_a_step():
    """A 4×2 weight, both sides dense, 8 tokens of which every second counts, refreshed at every fifth step."""
    config = AdaFisherConfig(structure="kronecker", token_stride=2, update_interval=5, basis_interval=10)
    work = step_profile.count([(4, 2)], config, tokens=8)
    assert work["forward, backward"] == 3 * 2 * 8 * 4 * 2
    assert work["statistics (hooks)"] == pytest.approx(2 * 4 * (16 + 4) / 5)
    assert work["direction"] == pytest.approx(2 * (64 + 8) / 5)
    assert work["rotations"] == 2 * (2 * 4 * 4 * 2 + 2 * 4 * 2 * 2)
    assert work["eigenbasis"] == pytest.approx(step_profile.EIGH * (64 + 8) / 50)
    only_rows = step_profile.count([(4, 2)], dataclasses.replace(config, max_factor_dim=2), tokens=8)
    assert only_rows["rotations"] == 2 * (2 * 4 * 2 * 2)


def test_clock_subtracts_what_runs_inside():
    class Work:
        def outer(self):
            time.sleep(0.02)
            self.inner()

        def inner(self):
            time.sleep(0.05)

    clock = step_profile.Clock()
    with clock.around({"outer": [(Work, "outer")], "inner": [(Work, "inner")]}):
        Work().outer()
    assert 0.02 <= clock.seconds["outer"] < 0.05 <= clock.seconds["inner"]
    assert Work.outer.__name__ == "outer"


def test_ablation_changes_one_option_at_a_time(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(ablation, "NewsProblem", Regression)
    original = ablation.train

    def recorded(problem, arm, **settings):
        built.append(dict(arm.knobs))
        return original(problem, arm, **settings)

    monkeypatch.setattr(ablation, "train", recorded)
    monkeypatch.setattr(timing, "STEPS", 2)
    table = ablation.measure(4, 1e-2, [0], tmp_path)
    assert [knobs.pop("structure") for knobs in built] == ["kronecker"] * len(ablation.CHANGES)
    assert all(len(knobs) == 1 for knobs in built[1:]) and not built[0]
    assert "| the defaults |" in table and "| +0.000 | × 1.00 (1.00) |" in table


def test_rounding_by_chance_is_right_on_average():
    exact = torch.full((20_000,), 1.0 + 2.0**-9)  # a quarter of the way from 1 to its neighbour
    rounded = round_by_chance(exact)
    assert set(rounded.tolist()) == {1.0, 1.0 + 2.0**-7}
    assert rounded.float().mean().item() == pytest.approx(exact[0].item(), abs=1e-4)
