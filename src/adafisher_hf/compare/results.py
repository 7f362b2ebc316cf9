"""What the runs of a comparison say of each arm, seed by seed against the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .arms import Arm
from .contest import costs_of
from .estimate import Estimate, estimate
from .metric import Metric
from .plan import Job, Plan
from .record import Point
from .run import Run


@dataclass(frozen=True)
class Standing:
    """An arm's.

    Attributes:
        arm: which.
        tried: the runs of its learning rates that have ended.
        lr: the best one; None: it has none.
        finals: the runs at that rate that are reported, by seed.
    """

    arm: Arm
    tried: Mapping[float, Run]
    lr: float | None
    finals: Mapping[int, Run]

    @property
    def edge(self) -> str | None:
        """Which end of its learning rates the best one is, of several: beyond it there may be a better one."""
        rates = self.arm.rates
        ends = {min(rates): "lowest", max(rates): "highest"} if len(rates) > 1 else {}
        return None if self.lr is None else ends.get(self.lr)

    @property
    def best_run(self) -> Run | None:
        """One to look at: of those that are reported, or else the one that chose the learning rate."""
        return next(iter(self.finals.values()), None if self.lr is None else self.tried[self.lr])


@dataclass(frozen=True)
class Comparison:
    """Of every arm with the baseline.

    Attributes:
        plan: what was wanted.
        runs: what there is.
        metric: by which the learning rates were chosen.
        reported: the metric of the tables, which is one of a test split where every run has one.
        standings: of the arms, the baseline first.
    """

    plan: Plan
    runs: Mapping[Job, Run]
    metric: Metric
    reported: str
    standings: Sequence[Standing]

    @property
    def baseline(self) -> Standing:
        return self.standings[0]

    @property
    def is_on_other_seeds(self) -> bool:
        """Whether other runs are reported than those that chose the learning rates."""
        return any(seed != 0 for standing in self.standings for seed in standing.finals)

    def final(self, standing: Standing) -> Estimate | None:
        """The reported metric at the end."""
        return _estimate(self._value(run) for run in standing.finals.values())

    def difference(self, standing: Standing) -> Estimate | None:
        """The reported metric less the baseline's, of the seeds that both have."""
        return _estimate(self._value(run) - self._value(base) for run, base in self._pairs(standing))

    def gain(self, standing: Standing) -> Estimate | None:
        """The difference with the sign that makes more the better."""
        difference = self.difference(standing)
        if difference is None or self.metric.greater_is_better:
            return difference
        return difference._replace(mean=-difference.mean)

    def at_baseline_time(self, standing: Standing) -> Estimate | None:
        """The metric when as much training time had gone by as the baseline's runs took, from the arm's own curve.

        An arm that had ended by then counts with its last value; None: it had not been evaluated yet.
        """
        values = [
            _value_at(base.record.seconds, run.record.curve(self.metric.name)) for run, base in self._pairs(standing)
        ]
        return _estimate(value for value in values if value is not None) if None not in values else None

    def steps_to_baseline(self, standing: Standing) -> int | None:
        """The first evaluation at which the mean over seeds is as good as the baseline's at its end; None: never."""
        pairs = self._pairs(standing)
        goal = _estimate(base.record.curve(self.metric.name)[-1].value for _, base in pairs)
        if goal is None or not math.isfinite(goal.mean):
            return None
        curves = [run.record.curve(self.metric.name) for run, _ in pairs]
        for points in zip(*curves, strict=False):
            if self.metric.cost(estimate([p.value for p in points]).mean) <= self.metric.cost(goal.mean):
                return points[0].step
        return None

    def seconds(self, standing: Standing) -> float:
        """Of training, the mean of the reported runs; nan where there is none."""
        times = _estimate(run.record.seconds for run in standing.finals.values())
        return math.nan if times is None else times.mean

    def steps(self) -> list[int]:
        """At which the reported runs ended; one number if they are comparable."""
        return sorted({run.record.steps for standing in self.standings for run in standing.finals.values()})

    def missing(self) -> list[Job]:
        """Runs that were wanted and not made."""
        return self.plan.wanted(costs_of(self.runs, self.metric))

    def failed(self) -> dict[Job, Run]:
        """Runs that came to nothing."""
        return {job: run for job, run in self.runs.items() if run.error is not None}

    def _pairs(self, standing: Standing) -> list[tuple[Run, Run]]:
        theirs = self.baseline.finals
        return [(run, theirs[seed]) for seed, run in standing.finals.items() if seed in theirs]

    def _value(self, run: Run) -> float:
        value = run.record.last(self.reported)
        assert value is not None  # by the choice of ``reported``
        return value


def compared(plan: Plan, runs: Mapping[Job, Run], metric: Metric) -> Comparison:
    """Reads the runs.

    Seeds beside the first are what is reported, as soon as there are any: the first has chosen the learning rates.

    Raises:
        CompareError: a run has no such metric.
    """
    costs = costs_of(runs, metric)
    best = {arm: plan.best(arm, costs) for arm in plan.arms}
    others = {arm: {} if lr is None else _good(plan.finals(arm, lr), runs) for arm, lr in best.items()}
    first = {arm: {} if lr is None else _good([Job(arm, lr, 0)], runs) for arm, lr in best.items()}
    finals = others if any(others.values()) else first
    tried = {arm: {job.lr: runs[job] for job in plan.tuning(arm) if job in runs} for arm in plan.arms}
    standings = [Standing(arm, tried[arm], best[arm], finals[arm]) for arm in plan.arms]
    shown = [run for by_seed in finals.values() for run in by_seed.values()]
    tests = (name for name in metric.on_test_splits() if all(run.record.last(name) is not None for run in shown))
    return Comparison(plan, runs, metric, next(tests, metric.name) if shown else metric.name, standings)


def _good(jobs: Sequence[Job], runs: Mapping[Job, Run]) -> dict[int, Run]:
    return {job.seed: runs[job] for job in jobs if job in runs and runs[job].error is None}


def _estimate(numbers: Any) -> Estimate | None:
    found = list(numbers)
    return estimate(found) if found else None


def _value_at(seconds: float, curve: Sequence[Point]) -> float | None:
    import numpy

    if not curve or seconds < curve[0].seconds:
        return None
    return float(numpy.interp(seconds, [p.seconds for p in curve], [p.value for p in curve]))
