"""One sentence: what to do, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from adafisher_hf.compare.arms import Arm
from adafisher_hf.compare.metric import metric_of
from adafisher_hf.compare.plan import Job, Plan
from adafisher_hf.compare.results import compared
from adafisher_hf.compare.run import Run
from adafisher_hf.compare.verdict import verdict

from .fakes import LOSS, crashed, done

BASE, OURS, OTHER = (Arm(name, "", (1e-3,)) for name in ("adamw_torch", "adafisherw", "fadam"))
NOISE = {1: 0.3, 2: -0.1, 3: 0.5}  # of a seed, the same for all arms


def say(losses: Mapping[Arm, list[float]], *, metric=LOSS, seconds: float = 1.0, failed: tuple[Arm, ...] = ()) -> str:
    """The verdict on arms with these final losses, seed by seed; with one, it is that of the only seed.

    Args:
        seconds: a step of any arm but the baseline.
    """
    seeds = len(next(iter(losses.values())))
    plan = Plan(list(losses), seeds + 1 if seeds > 1 else 1)
    runs: dict[Job, Run] = {}
    for arm, finals in losses.items():
        chosen = [finals[0]] if seeds == 1 else [0.0, *finals]
        for seed, final in enumerate(chosen):
            job = Job(arm, 1e-3, seed)
            run = done(
                job,
                lambda job, step, final=final: final + NOISE.get(job.seed, 0) + (100 - step) / 10,
                step_seconds=1.0 if arm is BASE else seconds,
            )
            runs[job] = crashed(job) if arm in failed else run
    return verdict(compared(plan, runs, metric))


def test_one_seed_is_no_evidence_whoever_is_ahead():
    ahead, behind = say({BASE: [5.0], OURS: [4.0]}), say({BASE: [4.0], OURS: [5.0]})
    assert ahead.startswith("adafisherw at lr 1e-3 ends with eval_loss 1.000 lower than adamw_torch")
    assert behind.startswith(
        "Nothing is better than adamw_torch: adafisherw at lr 1e-3 ends with eval_loss 1.000 higher"
    )
    for text in (ahead, behind):
        assert "one seed is no evidence" in text and "Take" not in text and "Stay" not in text


def test_a_lead_on_every_seed_counts():
    text = say({BASE: [5.0, 5.0, 5.0], OURS: [4.0, 4.1, 3.9]})
    assert text.startswith("Take adafisherw at lr 1e-3: its eval_loss is 1.000 ± 0.058 lower than that of adamw_torch")
    assert "over 3 seeds." in text


def test_a_lead_within_twice_its_error_does_not():
    text = say({BASE: [5.0, 5.0, 5.0], OURS: [4.0, 5.4, 5.0]})
    assert text.startswith("Stay with adamw_torch at lr 1e-3: no arm is better by more than 2 standard errors")
    assert "adafisherw, ends with eval_loss 0.200 ± 0.416 lower, over 3 seeds" in text


def test_a_sure_loss_is_no_reason_to_change():
    assert say({BASE: [5.0, 5.0, 5.0], OURS: [6.0, 6.1, 5.9]}).startswith("Stay with adamw_torch")


@pytest.mark.parametrize("shift", [1.9, 2.1])
def test_the_border_is_at_two_standard_errors(shift):
    wobble = [-0.1, 0.0, 0.1]
    error = 0.1 / math.sqrt(3)
    text = say({BASE: [5.0] * 3, OURS: [5.0 - shift * error + w for w in wobble]})
    assert text.startswith("Take" if shift > 2 else "Stay")


def test_a_sure_gain_is_taken_before_a_larger_one_that_is_not():
    text = say({BASE: [5.0] * 3, OURS: [4.9, 4.9, 4.9], OTHER: [1.0, 5.0, 5.0]})
    assert text.startswith("Take adafisherw")
    text = say({BASE: [5.0] * 3, OURS: [4.9, 4.9, 4.9], OTHER: [4.0, 4.1, 4.0]})
    assert text.startswith("Take fadam")


def test_an_arm_with_one_seed_does_not_hide_another_that_is_sure():
    plan = Plan([BASE, OURS, OTHER], 4)
    finals = {BASE: 5.0, OURS: 4.0, OTHER: 1.0}
    jobs = [Job(arm, 1e-3, seed) for arm in finals for seed in range(4) if arm is not OTHER or seed < 2]
    runs = {job: done(job, lambda job, step: finals[job.arm]) for job in jobs}
    assert verdict(compared(plan, runs, LOSS)).startswith("Take adafisherw")


def test_two_seeds_are_few():
    assert "over 2 seeds, which is few." in say({BASE: [5.0, 5.0], OURS: [4.0, 4.1]})


def test_a_lead_that_is_gone_by_the_clock_is_said_with_it():
    losses = {BASE: [5.0] * 3, OURS: [4.0] * 3}
    assert "behind" not in say(losses)
    assert "; in the time that adamw_torch takes it is behind, though." in say(losses, seconds=2.0)


@pytest.mark.parametrize(("best", "edge"), [(1e-4, "lowest"), (1e-3, None), (1e-2, "highest")])
def test_a_baseline_that_wants_more_learning_rates_is_said_with_it(best, edge):
    grid = Arm("adamw_torch", "", (1e-4, 1e-3, 1e-2))
    plan = Plan([grid, OURS], 3)
    jobs = [*plan.tuning(grid), *plan.finals(grid, best), *plan.tuning(OURS), *plan.finals(OURS, 1e-3)]
    loss = lambda job, step: 5.0 - (job.arm is OURS) + (job.arm is grid and job.lr != best)  # noqa: E731
    text = verdict(compared(plan, {job: done(job, loss) for job in jobs}, LOSS))
    assert text.startswith("Take adafisherw")
    assert (f"; but adamw_torch was best at the {edge} of its learning rates" in text) == (edge is not None)


def test_more_may_be_better():
    losses = {BASE: [5.0] * 3, OURS: [4.0] * 3}
    assert say(losses, metric=metric_of("eval_loss", True)).startswith("Stay with adamw_torch")
    losses = {BASE: [4.0] * 3, OURS: [5.0] * 3}
    assert "1.000 ± 0.000 higher than that of adamw_torch" in say(losses, metric=metric_of("eval_loss", True))


def test_without_a_baseline_or_anything_beside_it_there_is_no_verdict():
    losses = {BASE: [5.0] * 3, OURS: [4.0] * 3}
    assert say(losses, failed=(BASE,)).startswith("No verdict: the baseline, adamw_torch, has no finished run")
    assert say(losses, failed=(OURS,)).startswith("No verdict: beside the baseline, adamw_torch, nothing")
    assert say({BASE: [5.0] * 3, OURS: [4.0, math.nan, 4.0]}).startswith("No verdict: beside the baseline")
    assert say({BASE: [5.0, math.nan, 4.0], OURS: [4.0] * 3}).startswith("No verdict: the baseline")
