"""A comparison on its way: every run once, crashes kept, the budget kept to."""

from __future__ import annotations

import pytest

from adafisher_hf.compare.budget import Budget
from adafisher_hf.compare.contest import carry_out
from adafisher_hf.compare.errors import CompareError
from adafisher_hf.compare.metric import metric_of
from adafisher_hf.compare.plan import Job
from adafisher_hf.compare.run import Run

from .fakes import ADAMW, LOSS, OURS, FakeMaker, crashed, done, plan, tell_nobody


def loss(job: Job, step: int) -> float:
    return abs(job.lr - 3e-3) + job.seed


def made(job: Job) -> Run:
    return done(job, loss)


def go(maker: FakeMaker, seeds: int = 3, budget: float | None = None, metric=LOSS) -> dict[Job, Run]:
    return carry_out(plan(seeds), metric, maker, Budget(budget, clock=lambda: maker.now), tell_nobody)


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_every_run_is_made_once(at_once):
    maker = FakeMaker(made, at_once)
    runs = go(maker)
    assert len(runs) == len(maker.started) == len(set(maker.started)) == plan(3).count()
    assert {job.lr for job in runs if job.seed and job.arm is OURS} == {3e-3}
    assert {job.lr for job in runs if job.seed and job.arm is ADAMW} == {1e-3}
    assert maker.stopped


def test_what_is_finished_is_not_made_again():
    maker = FakeMaker(made)
    runs = go(maker, seeds=1)
    first = list(maker.started)
    assert go(maker, seeds=1) == runs and maker.started == first
    more = go(maker, seeds=2)
    assert maker.started[len(first) :] == [job for job in more if job.seed == 1]


def test_a_crash_is_kept_and_the_others_go_on():
    maker = FakeMaker(lambda job: crashed(job) if job.lr == 3e-3 else made(job))
    runs = go(maker)
    assert [job.lr for job, run in runs.items() if run.error] == [3e-3]
    assert len(runs) == plan(3).count()
    assert {job.lr for job in runs if job.seed and job.arm is OURS} == {1e-3}
    maker.make = made
    again = go(maker, seeds=1)
    assert maker.started[-1] == Job(OURS, 3e-3, 0), "the same command tries it again"
    assert not any(run.error for run in again.values())


def test_an_arm_that_always_crashes_does_not_hold_up_the_other():
    runs = go(FakeMaker(lambda job: crashed(job) if job.arm is OURS else made(job)))
    assert sum(job.arm is ADAMW for job in runs) == 5 and sum(job.arm is OURS for job in runs) == 3


@pytest.mark.parametrize(("budget", "count"), [(99, 1), (100, 1), (199, 1), (200, 2), (350, 3), (10_000, 10)])
def test_no_run_begins_that_would_not_end_in_time(budget, count):
    maker = FakeMaker(made)  # a run takes 100 s
    assert len(go(maker, budget=budget)) == count
    assert count == 1 or maker.now <= budget


def test_a_crash_says_nothing_of_how_long_a_run_takes():
    maker = FakeMaker(lambda job: crashed(job) if job.arm is ADAMW else made(job))
    go(maker, budget=160)  # 101 s are gone; with the crash of one second the mean of the two would be 50 s
    assert len(maker.started) == 2


def test_earlier_runs_say_how_long_one_takes():
    maker = FakeMaker(made)
    go(maker, seeds=1)
    maker.now = 0.0
    assert len(go(maker, seeds=3, budget=250)) == 6 + 2


def test_a_metric_that_is_not_there_stops_everything_at_the_first_run():
    maker = FakeMaker(made)
    with pytest.raises(CompareError, match=r"reports no 'eval_f1' \(--metric\), there is: eval_loss"):
        go(maker, metric=metric_of("f1", None))
    assert len(maker.started) == 1 and maker.stopped


def test_an_interrupt_ends_what_runs():
    def interrupted(job: Job) -> Run:
        raise KeyboardInterrupt

    maker = FakeMaker(interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(maker)
    assert maker.stopped
