"""Which runs are wanted, in which order, and how long that may take."""

from __future__ import annotations

import itertools
import math

import pytest

from adafisher_hf.compare.arms import Arm
from adafisher_hf.compare.budget import Budget, seconds_of
from adafisher_hf.compare.errors import CompareError
from adafisher_hf.compare.plan import Job

from .fakes import ADAMW, OURS, plan


def test_at_first_every_rate_with_the_first_seed_arms_in_turns_the_middle_first():
    wanted = plan(seeds=3).wanted({})
    assert [job.arm for job in wanted] == [ADAMW, OURS] * 3
    assert {job.seed for job in wanted} == {0}
    assert [job.lr for job in wanted if job.arm is ADAMW] == [3e-4, 1e-4, 1e-3]
    assert sorted(job.lr for job in wanted if job.arm is OURS) == sorted(OURS.rates)


def test_then_the_best_rate_of_each_arm_with_the_other_seeds():
    for best in itertools.product(ADAMW.rates, OURS.rates):
        costs = {job: float(job.lr != best[job.arm is OURS]) for job in plan(3).wanted({})}
        wanted = plan(3).wanted(costs)
        assert {(job.arm, job.lr, job.seed) for job in wanted} == {
            (arm, lr, seed) for arm, lr in zip((ADAMW, OURS), best, strict=True) for seed in (1, 2)
        }
        assert plan(3).wanted({**costs, **dict.fromkeys(wanted, 0.0)}) == []
        assert len(costs) + len(wanted) == plan(3).count()
        assert plan(1).wanted(costs) == []


def test_arms_come_equally_far_one_run_after_the_other():
    costs: dict[Job, float] = {}
    while wanted := plan(4).wanted(costs):
        costs[wanted[0]] = wanted[0].lr
        counts = [sum(job.arm is arm for job in costs) for arm in (ADAMW, OURS)]
        assert counts[0] - counts[1] in (0, 1)


def test_an_arm_whose_rates_are_all_tried_does_not_wait_for_the_others():
    costs = {job: job.lr for job in plan(2).tuning(ADAMW)}
    wanted = plan(2).wanted(costs)
    assert [job for job in wanted if job.arm is ADAMW] == [Job(ADAMW, 1e-4, 1)]
    assert [job.seed for job in wanted if job.arm is OURS] == [0, 0, 0]


def test_what_came_to_nothing_is_not_chosen_and_an_arm_without_any_has_no_more_runs():
    tried = plan(2).wanted({})
    costs = {job: math.inf if job.arm is OURS or job.lr < 1e-3 else 5.0 for job in tried}
    assert plan(2).best(ADAMW, costs) == 1e-3 and plan(2).best(OURS, costs) is None
    assert plan(2).wanted(costs) == [Job(ADAMW, 1e-3, 1)]


def test_arms_of_different_lengths():
    short = Arm("sgd", "", (1.0,))
    wanted = plan(arms=(short, OURS)).wanted({})
    assert [job.arm for job in wanted] == [short, OURS, OURS, OURS]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1h30m", 5400), ("2d", 172800)]
)
def test_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["30", "m", "1h 30m", "-5m", "0s", "1.2.3s", "soon", ""])
def test_what_is_no_time(text):
    with pytest.raises(CompareError, match="--budget must be a time such as 30m"):
        seconds_of(text)


def test_a_budget_ends_where_the_mean_run_does_not_fit_any_more():
    now = [5.0]
    budget = Budget(60, clock=lambda: now[0])
    assert budget.has_room([])
    now[0] += 40
    assert budget.has_room([10, 30]) and not budget.has_room([10, 30.1])
    now[0] += 1000
    assert not budget.has_room([])
    assert Budget(None).has_room([1e9])
