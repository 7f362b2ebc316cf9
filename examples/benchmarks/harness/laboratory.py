"""Carries out plans: what runs are wanted next may depend on how the last ones ended.

A plan is a generator. It yields jobs, is sent their runs, and returns what it found. Plans of different arms go on side
by side, so that no worker waits for another arm.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Generic, TypeVar

from .jobs import Job
from .journal import Journal
from .problem import Problem
from .progress import Progress
from .runner import Run
from .workers import Workers

Found = TypeVar("Found")
Plan = Generator[list[Job], list[Run], Found]


class Laboratory:
    """Runs on one problem, each made once and kept in a journal.

    Args:
        count: of worker processes.
        only_known: makes no runs: a plan that needs one which is not in the journal is given up.
    """

    def __init__(self, problem: Problem, journal: Journal, count: int = 1, only_known: bool = False):
        self.problem, self.journal = problem, journal
        self._count, self._only_known = count, only_known

    def carry_out(self, plans: Mapping[str, Plan[Found]], title: str, steps: int) -> dict[str, Found]:
        """What each plan returns.

        Args:
            title: of this stage, for the lines of progress.
            steps: about how many the runs of all plans have, for the time that is left.
        """
        ongoing = {name: _Ongoing(plan, self._find) for name, plan in plans.items()}
        progress = Progress(title, steps)
        with Workers(self.problem, self._count) as workers:
            while not self._only_known and (missing := [job for plan in ongoing.values() for job in plan.missing()]):
                workers.add(missing)
                job, run = workers.next_finished()
                self.journal.add(job.setting(self.problem), run)
                progress.finished(job, run)
                for plan in ongoing.values():
                    plan.go_on()
        return {name: plan.found[0] for name, plan in ongoing.items() if plan.found}

    def _find(self, job: Job) -> Run | None:
        return self.journal.find(job.setting(self.problem))


class _Ongoing(Generic[Found]):
    """A plan, and where it stands.

    Attributes:
        found: what it returned, once it has.
    """

    def __init__(self, plan: Plan[Found], find: Callable[[Job], Run | None]):
        self.found: list[Found] = []
        self._plan, self._find = plan, find
        self._wanted: list[Job] = []
        self._send(None)
        self.go_on()

    def missing(self) -> list[Job]:
        return [] if self.found else [job for job in self._wanted if self._find(job) is None]

    def go_on(self) -> None:
        """As far as there are runs."""
        while not self.found and not self.missing():
            self._send([run for run in map(self._find, self._wanted) if run is not None])

    def _send(self, runs: list[Run] | None) -> None:
        try:
            self._wanted = next(self._plan) if runs is None else self._plan.send(runs)
        except StopIteration as stop:
            self.found = [stop.value]
