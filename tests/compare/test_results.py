"""What the runs say of each arm: numbers that can be worked out by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest

from adafisher_hf.compare.arms import Arm
from adafisher_hf.compare.metric import metric_of
from adafisher_hf.compare.notes import notes
from adafisher_hf.compare.plan import Job
from adafisher_hf.compare.record import Evaluation, Record, read_record
from adafisher_hf.compare.results import Comparison, compared
from adafisher_hf.compare.run import Run
from adafisher_hf.compare.tables import cost_table, failures_table, markdown, quality_table, tries_table

from .fakes import ADAMW, LOSS, OURS, STEPS, Formula, crashed, done, plan

BEST = {ADAMW: 3e-4, OURS: 3e-3}


def falling(job: Job, step: int) -> float:
    """AdamW from 10 to 8, ours from 10 to 6; other rates a half more; a seed shifts both alike."""
    slope = {ADAMW: 0.02, OURS: 0.04}[job.arm]
    return 10 - slope * step + 0.5 * (job.lr != BEST[job.arm]) + 3 * job.seed


def make(seeds: int = 1, loss: Formula = falling, slower: float = 1.0, **options: bool) -> Comparison:
    """All runs of a plan, ours with steps that take so many times as long."""
    wanted = plan(seeds)
    jobs = [job for arm in wanted.arms for job in (*wanted.tuning(arm), *wanted.finals(arm, BEST[arm]))]
    times = {ADAMW: 1.0, OURS: slower}
    return compared(wanted, {job: done(job, loss, step_seconds=times[job.arm], **options) for job in jobs}, LOSS)


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_equal_steps():
    comparison = make()
    baseline, ours = comparison.standings
    assert (baseline.lr, ours.lr) == (3e-4, 3e-3)
    assert comparison.final(baseline).mean == pytest.approx(8) and comparison.final(ours).mean == pytest.approx(6)
    assert comparison.difference(ours).mean == pytest.approx(-2) and comparison.gain(ours).mean == pytest.approx(2)
    assert math.isnan(comparison.gain(ours).error) and not comparison.gain(ours).counts


@pytest.mark.parametrize(("slower", "steps"), [(1.0, 100), (2.0, 50), (1.6, 62.5), (8.0, 12.5), (0.5, 100)])
def test_the_metric_in_the_baselines_time_is_that_of_the_steps_that_fit(slower, steps):
    comparison = make(slower=slower)
    assert comparison.at_baseline_time(comparison.standings[1]).mean == pytest.approx(10 - 0.04 * steps)
    assert comparison.at_baseline_time(comparison.baseline).mean == pytest.approx(8)
    assert comparison.seconds(comparison.standings[1]) == pytest.approx(100 * slower)


def test_before_the_first_evaluation_nothing_is_known():
    comparison = make(slower=20.0)
    assert comparison.at_baseline_time(comparison.standings[1]) is None


def test_steps_to_the_baselines_end():
    comparison = make()
    assert comparison.steps_to_baseline(comparison.standings[1]) == 50
    assert comparison.steps_to_baseline(comparison.baseline) == STEPS
    behind = make(loss=lambda job, step: falling(job, step) + 5 * (job.arm is OURS))
    assert behind.steps_to_baseline(behind.standings[1]) is None
    lost = make(4, loss=lambda job, step: math.nan if job.arm is ADAMW and job.seed == 2 else falling(job, step))
    assert [lost.steps_to_baseline(standing) for standing in lost.standings] == [None, None]


def test_other_seeds_are_reported_than_the_one_that_chose():
    comparison = make(seeds=4)
    assert [list(standing.finals) for standing in comparison.standings] == [[1, 2, 3]] * 2
    assert comparison.final(comparison.baseline).mean == pytest.approx(8 + 3 * 2)
    assert comparison.is_on_other_seeds and not make().is_on_other_seeds


def test_what_a_seed_does_to_both_is_taken_out():
    difference = make(seeds=4).difference(make(seeds=4).standings[1])
    assert (difference.mean, difference.error, difference.seeds) == (pytest.approx(-2), pytest.approx(0, abs=1e-9), 3)
    assert difference.counts


def test_the_error_of_a_mean_is_that_of_statistics():
    shift = {1: 0.0, 2: 1.0, 3: 5.0}
    comparison = make(4, lambda job, step: falling(job, step) + (job.arm is OURS) * shift.get(job.seed, 0))
    difference = comparison.difference(comparison.standings[1])
    assert difference.mean == pytest.approx(-2 + 2)
    assert difference.error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))


def test_a_test_split_is_reported_where_every_run_has_one():
    comparison = make(test=True)
    assert comparison.reported == "test_loss" and comparison.final(comparison.baseline).mean == pytest.approx(9)
    assert comparison.at_baseline_time(comparison.baseline).mean == pytest.approx(8), "the curve is the evaluation's"
    runs = dict(comparison.runs)
    runs[Job(OURS, 3e-3, 0)] = done(Job(OURS, 3e-3, 0), falling)
    assert compared(plan(), runs, LOSS).reported == "eval_loss"
    assert "test_loss had no part in it" in notes(comparison)[1]
    assert "on the split that is reported," in notes(make())[1]
    assert "on the split that is reported, with another seed" in notes(make(seeds=3))[1]


def test_greater_may_be_better():
    accuracy = metric_of("accuracy", None)
    runs = {}
    for job in plan().wanted({}):
        value = 0.5 + 0.1 * (job.lr == BEST[job.arm]) + 0.2 * (job.arm is OURS)
        record = Record(STEPS, 1.0, [Evaluation(STEPS, 1.0, {"eval_accuracy": value})], state_bytes=8, trained=1)
        runs[job] = Run(done(job, falling).folder, 1.0, 1, record)
    comparison = compared(plan(), runs, accuracy)
    assert [standing.lr for standing in comparison.standings] == [3e-4, 3e-3]
    assert comparison.gain(comparison.standings[1]).mean == pytest.approx(0.2)
    assert comparison.steps_to_baseline(comparison.standings[1]) == STEPS


@pytest.mark.parametrize(
    ("name", "greater"),
    [("loss", False), ("eval_perplexity", False), ("wer", False), ("f1", True), ("eval_bleu", True)],
)
def test_whether_more_is_better_by_the_name(name, greater):
    metric = metric_of(name, None)
    assert metric.name.startswith("eval_") and not metric.name.startswith("eval_eval")
    assert metric.greater_is_better is greater and metric_of(name, not greater).greater_is_better is not greater


def test_a_run_that_diverged_is_not_chosen():
    comparison = make(loss=lambda job, step: math.nan if job.lr in BEST.values() else falling(job, step))
    assert [standing.lr for standing in comparison.standings] == [1e-4, 1e-3]
    assert "3e-4: diverged" in tries_table(comparison)


def test_of_several_evaluations_at_a_step_the_last_counts():
    evaluations = [
        Evaluation(1, 1.0, {"a": 3.0, "b": 0.0}),
        Evaluation(2, 2.0, {"a": 2.0}),
        Evaluation(2, 2.5, {"a": 1.0}),
    ]
    record = Record(2, 2.0, evaluations)
    assert record.curve("a") == [(1, 1.0, 3.0), (2, 2.5, 1.0)] and record.last("a") == 1.0
    assert record.last("c") is None and record.names() == ["a", "b"]


def test_a_record_comes_back_as_it_was(tmp_path):
    record = done(Job(OURS, 3e-3, 0), lambda job, step: math.nan).record
    record.write(tmp_path)
    assert repr(read_record(tmp_path)) == repr(record)
    record.state_bytes = None
    record.write(tmp_path)
    assert read_record(tmp_path) is None, "its training has no end"
    (tmp_path / "record.json").write_text('{"steps"')
    assert read_record(tmp_path) is None


# tables


def test_the_tables_show_these_numbers():
    comparison = make(seeds=4, slower=2.0)
    header, _, baseline, ours = cells(quality_table(comparison))
    assert header[2:] == ["eval_loss after 100 steps", "less the baseline's", "eval_loss in the baseline's time"]
    assert baseline == ["adamw_torch", "3e-4", "14.00 ± 1.73", "", "14.00 ± 1.73"]
    assert ours == ["adafisherw structure=orthogonal", "3e-3", "12.00 ± 1.73", "-2.00 ± 0.00 *", "14.00 ± 1.73"]
    _, _, baseline, ours = cells(cost_table(comparison))
    assert baseline == ["adamw_torch", "100", "× 1.00, 1.7 min", "8.00", "1,024 MiB"]
    assert ours == ["adafisherw structure=orthogonal", "50 of 100", "× 2.00, 3.3 min", "8.00", "1,024 MiB"]


def test_no_table_has_more_than_five_columns():
    comparison = make()
    runs = {**comparison.runs, Job(OURS, 1e-2, 0): crashed(Job(OURS, 1e-2, 0))}
    comparison = compared(plan(), runs, LOSS)
    for table in (quality_table, cost_table, tries_table, failures_table):
        lines = cells(table(comparison))
        assert {len(line) for line in lines} == {len(lines[0])} and len(lines[0]) <= 5


def test_what_failed_is_a_row_with_its_error_and_its_log():
    job = Job(OURS, 1e-2, 0)
    comparison = compared(plan(), {**make().runs, job: crashed(job, "ValueError: a|b")}, LOSS)
    table = failures_table(comparison)
    assert r"ValueError: a\|b" in table and str(comparison.runs[job].log) in table and str(job) in table
    assert "1e-2: failed" in tries_table(comparison)
    assert failures_table(make()) == ""


def test_an_arm_without_a_run_is_a_row_too():
    runs = {job: run for job, run in make().runs.items() if job.arm is ADAMW}
    comparison = compared(plan(), runs, LOSS)
    assert cells(quality_table(comparison))[3] == [str(OURS), "not run", "", "", ""]
    assert cells(cost_table(comparison))[3] == [str(OURS), "", "", "", ""]
    assert "1e-3: not run, 3e-3: not run" in tries_table(comparison)
    assert any(note.startswith("Not made") and str(Job(OURS, 3e-3, 0)) in note for note in notes(comparison))
    runs |= {job: crashed(job) for job in plan().tuning(OURS)}
    assert cells(quality_table(compared(plan(), runs, LOSS)))[3][1] == "failed"


def test_notes_say_what_makes_a_comparison_less_than_fair():
    def said(comparison: Comparison) -> str:
        return " ".join(notes(comparison))

    assert "best at" not in said(make()) and "rough" not in said(make()) and "more tries" not in said(make())
    job, run = next(iter(make().runs.items()))
    crowded = compared(plan(), {**make().runs, job: dataclasses.replace(run, at_once=2)}, LOSS)
    assert "2 runs at a time" in said(crowded)
    high = make(loss=lambda job, step: 5 - job.lr)
    assert "adamw_torch was best at the highest of its learning rates, 1e-3: try higher ones" in said(high)
    one = Arm("sgd", "", (1.0,))
    jobs = plan(arms=(one, OURS)).wanted({})
    uneven = compared(plan(arms=(one, OURS)), {job: done(job, lambda job, step: job.lr) for job in jobs}, LOSS)
    assert "more tries" in said(uneven) and "sgd was best" not in said(uneven)


def test_runs_of_different_lengths_are_told_apart():
    comparison = make()
    short = done(Job(OURS, 3e-3, 0), falling)
    short.record.steps = 70
    comparison = compared(plan(), {**comparison.runs, Job(OURS, 3e-3, 0): short}, LOSS)
    assert "eval_loss at the end" in quality_table(comparison)
    assert any("different steps (70, 100)" in note for note in notes(comparison))


def test_a_table_is_as_wide_as_its_cells():
    assert markdown(["a", "bcd"], [["long", "x"]]) == "| a    | bcd |\n| ---- | --- |\n| long | x   |"
