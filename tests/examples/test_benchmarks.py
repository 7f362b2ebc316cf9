"""The benchmark harness: fair tuning, resumable runs, an honest table."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import time

import pytest
import torch
from torch import nn

from adafisher_hf import AdaFisherConfig
from benchmarks import ablation, orthogonal_parts, pretrain, scale, step_profile
from benchmarks.harness import timing
from benchmarks.harness.arms import RATIOS, WEIGHT_DECAY, Arm, Point, adafisherw, decay_groups
from benchmarks.harness.catalogue import WIDTHS, make_problem
from benchmarks.harness.contest import Contest, read_points
from benchmarks.harness.contestants import ADAMW, ARMS, BETAS, MUON, NORMUON, ORTHOGONAL, SOAP_MUON
from benchmarks.harness.jobs import TUNING_SEED, Job
from benchmarks.harness.journal import Journal
from benchmarks.harness.laboratory import Laboratory
from benchmarks.harness.news import NewsProblem
from benchmarks.harness.peers.newton_schulz import orthogonalize
from benchmarks.harness.problem import Scores
from benchmarks.harness.rankings import cost_table, draw, quality_table, rivals_table, second_table, tuning_table
from benchmarks.harness.roles import hidden_matrices, tables
from benchmarks.harness.runner import Run, Training, train, warmup_then_cosine
from benchmarks.harness.sources import PythonProblem, pieces, split_of
from benchmarks.harness.standing import Standing, difference, estimate
from benchmarks.harness.timing import Timing, time_arms
from benchmarks.harness.tuning import RATES, best, tune
from benchmarks.rounding import round_by_chance
from errors import InputError
from plotting import plot_arms
from tests.models import llama

PAIR = (ADAMW, Arm("AdaFisherW", adafisherw, momentum="beta", momenta=BETAS, start=Point(3e-3, 0.9, 4.0)))
HERE = Point(3e-3, 0.9, 4.0)


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


def standing_with(tried, finals, equal_time=(), seconds=1.0, **more) -> Standing:
    runs = [[run_with(loss) for loss in losses] for losses in (finals, equal_time)]
    return Standing(tried, runs[0], timing=Timing([seconds], 10), equal_time=runs[1], **more)


def walked(optimum: Point, start: Point = HERE, **more) -> dict[Point, float]:
    """The search on a bowl around an optimum."""

    def loss(point):
        ratios = (point.lr / optimum.lr, (1 - point.momentum) / (1 - optimum.momentum), point.ratio / optimum.ratio)
        return sum(abs(math.log(ratio)) for ratio in ratios)

    search, losses = tune(Arm("any", adafisherw, momenta=BETAS), start, **more), None
    try:
        while True:
            losses = [loss(point) for point in (next(search) if losses is None else search.send(losses))]
    except StopIteration as stop:
        return stop.value


@pytest.mark.parametrize(
    "optimum",
    [HERE, Point(1e-2, 0.8, 4.0), Point(1e-3, 0.95, 16.0), Point(6e-3, 0.7, 1.0), Point(3e-2, 0.7, 64.0)],
)
def test_search_finds_the_best_point_in_few_runs(optimum):
    losses = walked(optimum)
    assert best(losses) == optimum
    assert len(losses) <= 15
    assert {point.momentum for point in losses} <= set(BETAS) and {point.ratio for point in losses} <= set(RATIOS)


def test_search_looks_beside_its_best_point_and_no_farther():
    assert {point.lr for point in walked(HERE)} == {1e-3, 3e-3, 6e-3}
    assert {point.lr for point in walked(Point(2e-2, 0.9, 4.0))} == {1e-3, 3e-3, 6e-3, 1e-2, 2e-2, 3e-2}
    assert {point.lr for point in walked(Point(1.0, 0.9, 4.0))} == {1e-3, *(lr for lr in RATES if lr >= 3e-3)}
    only_rate = walked(Point(6e-3, 0.7, 1.0), coordinates=("lr",))
    assert {(point.momentum, point.ratio) for point in only_rate} == {(0.9, 4.0)}


def test_search_ends_where_everything_diverges():
    search = tune(PAIR[1], HERE)
    points = tried = next(search)
    while points:
        try:
            points = search.send([math.inf] * len(points))
        except StopIteration:
            points = []
        tried = tried + points
    assert len(tried) == len(set(tried)) == 7


def test_learning_rate_warms_up_and_ends_near_zero():
    factors = [warmup_then_cosine(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == 1.0
    assert factors[9:] == sorted(factors[9:], reverse=True)
    assert 0 < factors[-1] < 1e-3


def test_arms_decay_matrices_alone():
    matrices, vectors = decay_groups(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), lr=0.1)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (WEIGHT_DECAY, 0.0)
    assert [parameter.dim() for parameter in matrices["params"]] == [2]
    assert [parameter.dim() for parameter in vectors["params"]] == [1, 1, 1]


@pytest.mark.parametrize("tied", [True, False])
def test_tables_and_heads_learn_at_their_own_rate(tied):
    model = llama(tie_word_embeddings=tied)
    groups = decay_groups(model, lr=0.01, ratio=4.0)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    faster = {id(model.lm_head.weight), id(model.model.embed_tokens.weight)}
    assert rates == {id(p): 0.04 if id(p) in faster else 0.01 for p in model.parameters()}
    optimizer = ADAMW.at(Point(0.01, (0.9, 0.999), 4.0)).build(model, 0.01)
    assert {group["lr"] for group in optimizer.param_groups} == {0.01, 0.04}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}


@pytest.mark.parametrize("name", WIDTHS)
def test_weights_have_the_roles_that_our_optimizer_sees(name):
    model = make_problem(name).model(0)
    rows = {row.name: row for row in ORTHOGONAL.at(ORTHOGONAL.start).build(model, 1e-2).coverage_rows()}
    hidden, outer = hidden_matrices(model), tables(model)
    for parameter_name, parameter in model.named_parameters():
        row = rows[parameter_name]
        assert (row.role == "hidden") == (id(parameter) in hidden), row
        assert (row.role == "vocabulary") == (id(parameter) in outer), row
        if row.role == "hidden":
            parts = len(hidden[id(parameter)](parameter))
            assert row.treatment == ("orthogonalised" if parts == 1 else f"orthogonalised, {parts} matrices")


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
    diverged = Standing({HERE: math.inf}, [run, run], timing=Timing([1.0], 10), equal_time=[run, run])
    assert "| AdamW | 3e-3, 0.9, 4 | diverged | diverged |" in quality_table({"AdamW": diverged}, "AdamW", "Muon", 6)
    draw({"AdamW": diverged}, tmp_path / "empty.png", "title")
    assert (tmp_path / "empty.png").exists()


def contest(out, arms=PAIR, **more) -> Contest:
    return Contest(Regression(), arms, ("AdamW", "AdaFisherW"), steps=6, seeds=2, out=out, **more)


def test_finished_runs_are_not_made_again(tmp_path, monkeypatch):
    def measure(stage="race"):
        standings = contest(tmp_path).measure(stage)
        return pretrain.quality_table(standings, "AdamW", "AdaFisherW", 6)

    first = measure()
    stored = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert len({json.dumps(entry["setting"]) for entry in stored}) == len(stored)
    assert {entry["setting"]["split"] for entry in stored if entry["setting"]["seed"] == TUNING_SEED} == {"tune"}
    assert {entry["setting"]["split"] for entry in stored if entry["setting"]["seed"] != TUNING_SEED} == {"eval"}
    assert {entry["setting"]["steps"] for entry in stored if entry["setting"]["split"] == "tune"} == {6}

    for name in ("jobs.train", "timing.Training"):
        monkeypatch.setattr(f"benchmarks.harness.{name}", lambda *args, **kwargs: pytest.fail("a run was made again"))
    assert measure() == measure("report") == first


def test_stages_go_on_from_one_another(tmp_path, monkeypatch):
    tuned = contest(tmp_path).measure("tune")
    assert not any(standing.finals or standing.timing for standing in tuned.values())
    assert read_points(tmp_path / "chosen.json") == {name: standing.point for name, standing in tuned.items()}
    equal = contest(tmp_path).measure("equal")
    assert all(len(standing.finals) == 2 and not standing.steps_to for standing in equal.values())
    clocked = contest(tmp_path).measure("clock")
    assert all(standing.timing and not standing.finals for standing in clocked.values())
    monkeypatch.setattr("benchmarks.harness.jobs.train", lambda *args, **kwargs: pytest.fail("a run was made"))
    read = contest(tmp_path).measure("report")
    assert all(standing.finals and standing.timing for standing in read.values())
    assert read["AdamW"].equal_time and not read["AdaFisherW"].equal_time
    assert contest(tmp_path / "empty").measure("report") == {}


def test_tuning_starts_where_another_benchmark_ended(tmp_path):
    starts = {"AdamW": Point(1e-2, (0.9, 0.999), 1.0)}
    tried = contest(tmp_path, PAIR[:1], starts=starts, coordinates=("lr",)).measure("tune")["AdamW"].tried
    assert {(point.momentum, point.ratio) for point in tried} == {((0.9, 0.999), 1.0)}
    (tmp_path / "chosen.json").write_text("[]")
    with pytest.raises(InputError, match="not the chosen.json"):
        read_points(tmp_path / "chosen.json")


def test_runs_in_other_processes_are_the_same(tmp_path):
    problem = make_problem("vit")
    jobs = [Job(ADAMW.at(ADAMW.start), 1e-3, seed, 2, "tune") for seed in (0, 1)]

    def plan():
        return (yield jobs)

    here, there = (
        Laboratory(problem, Journal(tmp_path / f"{count}.json"), count).carry_out({"any": plan()}, "test", 4)["any"]
        for count in (1, 2)
    )
    assert [run.loss for run in here] == [run.loss for run in there]
    assert len(json.loads((tmp_path / "2.json").read_text())["runs"]) == 2


class Racers(Contest):
    """Runs that end at their arm's pace: 1 / (speed · steps)."""

    def shortest(self, arm, losses) -> dict[str, int | None]:
        plan = self._shorter(arm, Standing({HERE: 1.0}, [self.run(arm, self.steps)]), losses)
        jobs = next(plan, None)
        while jobs:
            try:
                jobs = plan.send([self.run(arm, job.steps) for job in jobs])
            except StopIteration as stop:
                return stop.value
        return dict.fromkeys(losses)

    def run(self, arm, steps):
        return run_with(1.0 / (arm.knobs["speed"] * steps))


@pytest.mark.parametrize(("speed", "steps"), [(0.9, None), (1.0, 100), (1.9, 67), (2.5, 50), (100.0, 25)])
def test_shortest_schedule_that_reaches_a_rival(tmp_path, speed, steps):
    fast = Arm("fast", adafisherw, {"speed": speed})
    racers = Racers(Regression(), [fast], ("slow", "slower"), steps=100, seeds=1, out=tmp_path)
    assert racers.shortest(fast, {"slow": 0.01})["slow"] == steps
    if speed >= 1:
        slower = racers.shortest(fast, {"slow": 0.01, "slower": 0.02})
        assert slower["slow"] == steps and slower["slower"] <= steps


def test_arms_take_turns_on_the_clock(tmp_path, monkeypatch):
    started = []
    step = Training.step

    def logged(training):
        started.append(training.optimizer.__class__.__name__)
        step(training)

    monkeypatch.setattr(Training, "step", logged)
    rates = {arm.name: 1e-3 for arm in PAIR}
    monkeypatch.setattr(timing, "STEPS", 30)
    timings = time_arms(Regression(), PAIR, rates, tmp_path / "timing.json")
    assert started[2:] == (["AdamW"] * 10 + ["AdaFisherW"] * 10) * 3
    assert all(len(arm.turns) == 3 and min(arm.turns) > 0 for arm in timings.values())
    assert timings == time_arms(Regression(), PAIR, rates, tmp_path / "timing.json")
    some = time_arms(Regression(), PAIR[:1], rates, tmp_path / "timing.json")
    assert some == {PAIR[0].name: timings[PAIR[0].name]}


def test_clock_goes_on_at_the_steady_pace():
    clock = Timing([5.0, 3.0, 1.0], 30)
    assert clock.steady == 0.1
    assert [clock.seconds(steps) for steps in (0, 10, 15, 30, 50)] == pytest.approx([0.0, 5.0, 6.5, 9.0, 11.0])
    assert [clock.steps_within(seconds) for seconds in (0.4, 5.0, 9.05, 11.01)] == [0, 10, 30, 50]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_arms_train(arm):
    model = llama()
    optimizer = arm.at(arm.start).build(model, 1e-2)
    covered = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(covered) == sorted(id(p) for p in model.parameters())
    ids = torch.arange(12).view(2, 6)
    losses = []
    for _ in range(12):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("arm", [MUON, NORMUON], ids=lambda arm: arm.name)
def test_peers_agree_with_another_implementation(arm):
    import pytorch_optimizer

    def theirs(model):
        hidden, groups = hidden_matrices(model), decay_groups(model, 1e-2, 4.0)
        parts = [
            {**group, "params": chosen, "use_muon": use, "eps": 1e-8}
            for group in groups
            for use in (True, False)
            if (chosen := [p for p in group["params"] if (id(p) in hidden) is use])
        ]
        return getattr(pytorch_optimizer, arm.name)(parts, momentum=0.9, use_adjusted_lr=True)

    start, ours, other = llama(), llama(), llama()
    ids = torch.arange(12).view(2, 6)
    for model, optimizer in ((ours, arm.at(arm.start).build(ours, 1e-2)), (other, theirs(other))):
        for _ in range(6):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for before, a, b in zip(start.parameters(), ours.parameters(), other.parameters(), strict=True):
        assert (a - b).norm() < 0.1 * (b - before).norm()  # the iteration is in bfloat16


def test_equal_shapes_are_orthogonalised_together(monkeypatch):
    shapes = []

    def recorded(stack, **more):
        shapes.append(tuple(stack.shape))
        return orthogonalize(stack, **more)

    monkeypatch.setattr("benchmarks.harness.peers.muon.orthogonalize", recorded)
    model = make_problem("gpt2").model(0)
    optimizer = MUON.at(MUON.start).build(model, 1e-2)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert sorted(shapes) == [(4, 128, 512), (4, 512, 128), (16, 128, 128)]  # q, k, v and o of four layers


@pytest.mark.parametrize("shape", [(3, 8, 20), (3, 20, 8)])
def test_newton_schulz_flattens_the_spectrum(shape):
    stack = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonalize(stack))
    assert values.min() > 0.6 and values.max() < 1.3
    left, _, right = torch.linalg.svd(stack, full_matrices=False)
    nearest = (left @ right).flatten(1)
    assert nn.functional.cosine_similarity(orthogonalize(stack).flatten(1), nearest).min() > 0.95


def test_soap_muon_rotates_into_a_basis_and_back():
    model = llama()
    optimizer = SOAP_MUON.at(SOAP_MUON.start).build(model, 1e-2)
    for _ in range(12):  # past the first turn of the bases
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    states = [state for state in optimizer.state.values() if "basis-1" in state]
    for state in states:
        for side in ("basis-2", "basis-1"):
            assert torch.allclose(state[side].mT @ state[side], torch.eye(state[side].shape[-1]), atol=1e-4)
    assert len(states) == 4  # shapes: q and o, k and v, gate and up, down


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


def test_tables_say_what_counts():
    standings = {
        "AdamW": standing_with({HERE: 2.0, Point(1e-2, 0.9, 4.0): 2.05}, [2.0, 2.2], [2.0, 2.2]),
        "Muon": standing_with({HERE: 2.0}, [1.5, 1.7], [1.6, 1.7], 1.5, steps_to={"AdamW": 3, "Muon": None}),
        "other": standing_with(
            {Point(1e-2, 0.7, 1.0): 1.0}, [1.4, 1.61], [1.4, 1.5], 2.0, steps_to={"AdamW": 2, "Muon": 5}
        ),
        "behind": standing_with({HERE: 3.0}, [3.0, 3.3], steps_to={"AdamW": None, "Muon": None}),
    }
    quality = quality_table(standings, "AdamW", "Muon", 6)
    assert "| AdamW | 3e-3, 0.9, 4 | 2.100 ± 0.100 | +0.500 ± 0.000 * | 2.100 ± 0.100 |" in quality
    assert "| other | 1e-2, 0.7, 1 | 1.505 ± 0.105 | -0.095 ± 0.005 * | 1.450 ± 0.050 |" in quality
    assert "| behind | 3e-3, 0.9, 4 | 3.150 ± 0.150 | +1.550 ± 0.050 * |  |" in quality
    rivals = rivals_table(standings, "other")
    assert "| Muon | -0.095 ± 0.005 * | -0.200 ± 0.000 * |" in rivals and "| other |" not in rivals
    cost = cost_table(standings, "AdamW", "Muon", 6)
    assert "| AdamW | 6 (× 1.00, time × 1.00) |  | 1.00 (1.00); 0.67 (0.67) | 4.00 |" in cost
    assert "| other | 2 (× 0.33, time × 0.67) | 5 (× 0.83, time × 1.11) | 2.00 (2.00); 1.33 (1.33) | 4.00 |" in cost
    assert "| behind | not reached | not reached |" in cost
    assert "| AdamW | 3e-3: 2.000, 1e-2: 2.050 |" in tuning_table(standings)
    standings["other"].tried[Point(1e-2, 0.9, 1.0)] = 1.1  # now somebody tried two momenta, but nobody two ratios
    assert "| other | 1e-2: 1.000 | 0.7: 1.000, 0.9: 1.100 |" in tuning_table(standings)
    assert "| AdamW | 3e-3: 2.000, 1e-2: 2.050 | 0.9: 2.000 |" in tuning_table(standings)
    assert not second_table(standings, "Muon")
    before_the_race = {name: dataclasses.replace(standing, equal_time=[]) for name, standing in standings.items()}
    assert "at AdamW's time" in quality and "at AdamW's time" not in quality_table(before_the_race, "AdamW", "Muon", 6)
    for table in (quality, rivals, cost, tuning_table(standings)):
        assert max(line.count("|") - 1 for line in table.splitlines()) <= 5


def test_second_measure_has_a_table_of_its_own():
    runs = [dataclasses.replace(run_with(1.0), shifted=shifted) for shifted in (4.0, 4.2)]
    standings = {"Muon": Standing({HERE: 1.0}, runs), "other": Standing({HERE: 1.0}, runs[::-1])}
    assert "| other | 4.100 ± 0.100 | +0.000 ± 0.200 |" in second_table(standings, "Muon")


def test_standard_error_is_of_the_differences():
    assert estimate([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / 3**0.5))
    between = difference([1.0, 2.0, 3.0], [1.1, 2.1, 3.1])
    assert between.counts() and between.mean == pytest.approx(-0.1)
    alone = difference([1.0], [2.0])
    assert not alone.counts() and alone.shown(signed=True) == "-1.000"
    assert difference([math.inf, 1.0], [1.0, 1.0]).shown() == "diverged"


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


def test_pieces_of_the_sources_are_in_one_split(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.py").write_text("left out")
    (tmp_path / "b.py").write_text("x = 1\n" * 1000)
    (tmp_path / "c.py").write_text("x = 1\n" * 1000)
    found = list(pieces(tmp_path))
    assert "".join(found) == "x = 1\n" * 2000
    assert len({split_of(piece) for piece in found if len(piece) >= 2000}) == 1
    shares = [split_of(str(number)) for number in range(2000)]
    assert shares.count("eval") == pytest.approx(200, abs=50) and shares.count("tune") == pytest.approx(200, abs=50)


def test_sources_are_judged_on_news_too(monkeypatch):
    some = [f"def function_{number}():\n    return {number}\n" for number in range(400)]
    monkeypatch.setattr("benchmarks.harness.sources.pieces", lambda folder: some)
    problem = PythonProblem(2, 32, 400, 3, architecture={"num_hidden_layers": 1})
    scores = problem.evaluate(problem.model(0), "eval")
    assert scores.loss == pytest.approx(math.log(400), rel=0.1)
    assert scores.shifted == pytest.approx(scores.loss, rel=0.1)
    assert problem.evaluate(problem.model(0), "tune").shifted is None
    assert len(problem._splits["shifted"]) == 3


@pytest.mark.parametrize("name", ["news", "gpt2", "vit"])
def test_problems_come_in_every_width(name):
    sizes = [sum(p.numel() for p in make_problem(name, width).model(0).parameters()) for width in (None, 32, 256)]
    assert sizes[1] < sizes[0] < sizes[2]
    assert make_problem(name).describe() != make_problem(name, 256).describe()
    with pytest.raises(InputError, match="no multiple"):
        make_problem(name, 100)


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


def test_parts_are_changed_one_at_a_time():
    full = ORTHOGONAL.at(Point(1e-2, 0.8, 4.0))
    arms = orthogonal_parts.changed(full, fused=True)
    assert len({arm.name for arm in arms}) == len(arms)
    assert arms[0].describe() == {**full.describe(), "name": orthogonal_parts.FULL}
    for arm in arms[1:]:
        was, now = full.describe(), arm.describe()
        knobs = dict(now["knobs"].items() ^ was["knobs"].items())
        made_otherwise = now["optimizer"] not in (was["optimizer"], "variant")  # which comes with its structure
        assert len(knobs) + (now["ratio"] != was["ratio"]) + made_otherwise == 1, arm.name
    assert "fused projections as one matrix" not in {arm.name for arm in orthogonal_parts.changed(full, fused=False)}


def test_parts_make_a_difference():
    def trained(arm) -> torch.Tensor:
        problem = make_problem("vit")
        model = problem.model(0)
        optimizer = arm.build(model, 1e-2)
        batches = problem.batches(0)
        for _ in range(2):
            problem.loss(model, next(batches)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return _first_hidden(model)

    arms = {arm.name: arm for arm in orthogonal_parts.changed(ORTHOGONAL.at(Point(1e-2, 0.8, 4.0)), fused=False)}
    weights = {
        name: trained(arms[name])
        for name in (orthogonal_parts.FULL, "no curvature on hidden matrices", "no graft on hidden matrices")
    }
    full, *others = weights.values()
    assert all(not torch.allclose(full, other) for other in others)


def _first_hidden(model) -> torch.Tensor:
    hidden = hidden_matrices(model)
    return next(p.detach() for p in model.parameters() if id(p) in hidden)


def test_fixed_length_is_that_of_muon():
    model, lr = make_problem("vit").model(0), 0.01
    arm = next(arm for arm in orthogonal_parts.changed(ORTHOGONAL.at(HERE), fused=False) if "graft" in arm.name)
    optimizer = arm.build(model, lr)
    before = _first_hidden(model).clone()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    update = _first_hidden(model) - (1 - lr * WEIGHT_DECAY) * before
    assert update.norm() == pytest.approx(lr * 0.2 * before.numel() ** 0.5, rel=1e-3)


def test_commands_work(tmp_path, monkeypatch, capsys):
    """All three scripts, on a problem that takes no time."""
    for module in (pretrain, scale, orthogonal_parts):
        monkeypatch.setattr(module, "make_problem", lambda name, width: Regression())
    names = ["AdamW", "AdaFisherW, orthogonal"]
    out = tmp_path / "pretrain"
    pretrain.main(["--steps", "4", "--seeds", "2", "--arms", *names, "--out", str(out)])
    settings = out / "news-128-4" / "chosen.json"
    assert "### Llama, BBC News" in (out / "news-128-4" / "table.md").read_text()
    scale.main(
        ["--steps", "4", "--widths", "32", "64", "--settings", str(settings), "--arms", *names, "--out", str(tmp_path)]
    )
    assert (tmp_path / "scale.svg").exists() and "width 64" in (tmp_path / "table.md").read_text()
    orthogonal_parts.main(
        ["--steps", "4", "--seeds", "2", "--settings", str(settings), "--clock", "--out", str(tmp_path / "parts")]
    )
    assert "| nesterov=False |" in capsys.readouterr().out
    with pytest.raises(InputError, match="no arm is tuned yet"):
        pretrain.main(["--stage", "report", "--out", str(tmp_path / "nothing")])


def test_rounding_by_chance_is_right_on_average():
    exact = torch.full((20_000,), 1.0 + 2.0**-9)  # a quarter of the way from 1 to its neighbour
    rounded = round_by_chance(exact)
    assert set(rounded.tolist()) == {1.0, 1.0 + 2.0**-7}
    assert rounded.float().mean().item() == pytest.approx(exact[0].item(), abs=1e-4)


@pytest.mark.parametrize("count", [3, 7])
def test_many_curves_have_their_legend_in_the_order_of_their_ends(tmp_path, count):
    curves = {f"arm{i} (lr)": [[(1, 5.0), (2, 1.0 + (3 * i) % 7)]] for i in range(count)}
    text = plot_arms(curves, tmp_path / "curves.svg", "many").read_text()
    named = [int(i) for i in re.findall(r">arm(\d) \(lr\)<", text)]
    by_end = sorted(range(count), key=lambda i: -((3 * i) % 7))
    assert named == (by_end if count == 7 else list(range(count)))
