"""A comparison on its way: the plan asks for runs, the workshop makes them, as long as the budget lasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from .budget import Budget
from .errors import CompareError
from .metric import Metric
from .plan import Job, Plan
from .run import Run


class Maker(Protocol):
    """What a :class:`~.workshop.Workshop` can do."""

    @property
    def running(self) -> list[Job]: ...
    @property
    def has_room(self) -> bool: ...
    def find(self, job: Job) -> Run | None: ...
    def start(self, job: Job) -> None: ...
    def poll(self) -> tuple[Job, Run] | None: ...
    def stop(self) -> None: ...


Tell = Callable[[list[Job], Mapping[Job, Run]], None]


def carry_out(plan: Plan, metric: Metric, maker: Maker, budget: Budget, tell: Tell) -> dict[Job, Run]:
    """Makes what the plan wants, and takes what was made before.

    Args:
        plan: which runs there are.
        metric: by which an arm's learning rate is chosen.
        maker: makes them.
        budget: when to stop.
        tell: is told again and again what runs and what is done.

    Returns:
        The runs that have ended, well or not.

    Raises:
        CompareError: a run came to its end without this metric.
    """
    runs: dict[Job, Run] = {}
    try:
        while True:
            wanted = [job for job in plan.wanted(costs_of(runs, metric)) if job not in maker.running]
            found = {job: run for job in wanted if (run := maker.find(job)) is not None}
            if found:
                runs |= found
                continue
            while wanted and maker.has_room and budget.has_room(_times(runs)):
                maker.start(wanted.pop(0))
            tell(maker.running, runs)
            if not maker.running:
                return runs
            while (ended := maker.poll()) is None:
                tell(maker.running, runs)
            runs[ended[0]] = ended[1]
    finally:
        maker.stop()


def costs_of(runs: Mapping[Job, Run], metric: Metric) -> dict[Job, float]:
    """Of every run, the lower the better; infinite for one that failed.

    Raises:
        CompareError: a run has no such metric.
    """
    return {job: _cost(run, metric) for job, run in runs.items()}


def _times(runs: Mapping[Job, Run]) -> list[float]:
    """Of those that came to their end: a crash says little of how long a run takes."""
    return [run.seconds for run in runs.values() if run.error is None]


def _cost(run: Run, metric: Metric) -> float:
    if run.error is not None:
        return float("inf")
    value = run.record.last(metric.name)
    if value is None:
        names = ", ".join(run.record.names()) or "nothing (does the script need --do_eval?)"
        raise CompareError(f"the script reports no {metric.name!r} (--metric), there is: {names}")
    return metric.cost(value)
