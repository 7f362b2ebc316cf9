"""Runs that nobody has made: their losses are a formula, so that what is said of them can be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from adafisher_hf.compare.arms import Arm
from adafisher_hf.compare.metric import metric_of
from adafisher_hf.compare.plan import Job, Plan
from adafisher_hf.compare.record import Evaluation, Record
from adafisher_hf.compare.run import Run

LOSS = metric_of("eval_loss", None)
ADAMW = Arm("adamw_torch", "", (1e-4, 3e-4, 1e-3))
OURS = Arm("adafisherw", "structure=orthogonal", (1e-3, 3e-3, 1e-2))
STEPS = 100

Formula = Callable[[Job, int], float]  # the loss of a run after so many steps


def plan(seeds: int = 1, arms: Sequence[Arm] = (ADAMW, OURS)) -> Plan:
    return Plan(arms, seeds)


def done(job: Job, loss: Formula, *, step_seconds: float = 1.0, test: bool = False) -> Run:
    """A run of 100 steps with an evaluation at every tenth."""
    steps = range(STEPS // 10, STEPS + 1, STEPS // 10)
    evaluations = [Evaluation(step, step * step_seconds, {"eval_loss": loss(job, step)}) for step in steps]
    if test:
        evaluations.append(Evaluation(STEPS, STEPS * step_seconds, {"test_loss": loss(job, STEPS) + 1}))
    record = Record(STEPS, STEPS * step_seconds, evaluations, state_bytes=800, trained=100)
    return Run(Path("runs") / str(job), STEPS * step_seconds, 2**30, record)


def crashed(job: Job, error: str = "RuntimeError: out of memory") -> Run:
    return Run(Path("runs") / str(job), 1.0, 2**30, Record(), error)


class FakeMaker:
    """A workshop that makes runs by a function, and counts its seconds.

    Attributes:
        started: every job, in order.
        kept: what is found again.
        now: seconds since its beginning; a run takes those of its record.
    """

    def __init__(self, make: Callable[[Job], Run], at_once: int = 1):
        self.make, self.at_once = make, at_once
        self.started: list[Job] = []
        self.kept: dict[Job, Run] = {}
        self.now = 0.0
        self.running: list[Job] = []
        self.stopped = False

    @property
    def has_room(self) -> bool:
        return len(self.running) < self.at_once

    def find(self, job: Job) -> Run | None:
        return self.kept.get(job)

    def start(self, job: Job) -> None:
        self.started.append(job)
        self.running.append(job)

    def poll(self) -> tuple[Job, Run]:
        job = self.running.pop(0)
        run = self.make(job)
        self.now += run.seconds
        if run.error is None:
            self.kept[job] = run
        return job, run

    def stop(self) -> None:
        self.stopped = True


def tell_nobody(running: object, runs: object) -> None:
    pass
