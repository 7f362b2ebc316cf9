"""Where jobs run: in this process one after the other, or several at once in processes of one thread each."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import is_dataclass, replace
from multiprocessing import get_context, parent_process
from types import TracebackType
from typing import Any

import torch

from .jobs import Job
from .problem import Problem
from .runner import Run


class Workers:
    """Takes jobs, and gives each back with its run as it is finished.

    Args:
        count: of processes; 1: none but this one.
    """

    def __init__(self, problem: Problem, count: int = 1):
        self._problem, self._count = problem, count
        self._queue: deque[Job] = deque()
        self._taken: list[Job] = []
        self._running: dict[Future[Run], Job] = {}
        self._executor: ProcessPoolExecutor | None = None

    def add(self, jobs: Iterable[Job]) -> None:
        """Takes jobs; those that it has taken before it leaves out."""
        for job in jobs:
            if job not in self._taken:
                self._taken.append(job)
                self._queue.append(job)

    def next_finished(self) -> tuple[Job, Run]:
        """Waits for the next one."""
        if self._count == 1:
            job = self._queue.popleft()
            return job, job.run(self._problem)
        if self._executor is None:
            # Spawned, not forked: a forked process of torch may hang in its threads.
            spawn, problem = get_context("spawn"), _fresh(self._problem)
            self._executor = ProcessPoolExecutor(self._count, spawn, initializer=_begin, initargs=(problem,))
        while self._queue:
            job = self._queue.popleft()
            self._running[self._executor.submit(_run, job)] = job
        future = next(iter(wait(self._running, return_when=FIRST_COMPLETED).done))
        return self._running.pop(future), future.result()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=error is None, cancel_futures=True)
            self._executor = None


def _fresh(problem: Any) -> Problem:
    """The same without what it has prepared for itself, which need not be fit to travel."""
    fresh: Any = replace(problem) if is_dataclass(problem) and not isinstance(problem, type) else problem
    return fresh


_problem: Problem  # of a worker: its data are prepared once, not once a run


def _begin(problem: Problem) -> None:
    global _problem
    _problem = problem
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _run(job: Job) -> Run:
    return job.run(_problem)
