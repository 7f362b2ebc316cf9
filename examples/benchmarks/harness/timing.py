"""How long a run takes: all arms train side by side and take turns of a few steps, so that all see the same machine."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .arms import Arm
from .problem import Problem
from .runner import Training

TURN = 10  # steps
STEPS = 200  # that are timed: the dense warm-up, and as many after it


@dataclass(frozen=True)
class Timing:
    """An arm's clock.

    Attributes:
        turns: seconds of every ``TURN`` steps from the first one on; all but the last are whole turns.
        timed: steps that were timed.
    """

    turns: Sequence[float]
    timed: int

    @property
    def steady(self) -> float:
        """Seconds of a step once the dense warm-up is over: the median over the last third of the turns."""
        return statistics.median(self.turns[-max(1, len(self.turns) // 3) :]) / min(TURN, self.timed)

    def seconds(self, steps: int) -> float:
        """How long the first steps take; beyond those that were timed, the steady pace goes on."""
        if steps > self.timed:
            return sum(self.turns) + (steps - self.timed) * self.steady
        whole = steps // TURN
        rest = steps % TURN
        return sum(self.turns[:whole]) + (self.turns[whole] * rest / TURN if rest else 0.0)

    def steps_within(self, seconds: float) -> int:
        """How many steps fit into a time."""
        steps = 0
        while self.seconds(steps + 1) <= seconds:
            steps += 1
        return steps


def timed_steps(steps: int) -> int:
    """How many steps of such a run the clock has to see: whole turns."""
    return min(STEPS, -(-steps // TURN) * TURN)


def time_arms(
    problem: Problem, arms: Sequence[Arm], rates: Mapping[str, float], path: Path, steps: int | None = None
) -> dict[str, Timing]:
    """Times the first ``STEPS`` steps of every arm; or reads the file of an earlier call for the same arms."""
    steps = STEPS if steps is None else steps
    known = read_timings(problem, arms, path, steps)
    if known is not None:
        return known
    turns = _take_turns(problem, arms, rates, steps)
    timings = {name: Timing(seconds, steps) for name, seconds in turns.items()}
    question = _question(problem, arms, steps)
    content = {"question": question, "timings": {name: asdict(timing) for name, timing in timings.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))
    return timings


def read_timings(
    problem: Problem, arms: Sequence[Arm], path: Path, steps: int | None = None
) -> dict[str, Timing] | None:
    """What the file of an earlier call says, for these arms or for these and others."""
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    # Through JSON, which turns tuples into lists.
    asked = json.loads(json.dumps(_question(problem, arms, STEPS if steps is None else steps)))
    known = {**stored["question"], "arms": [arm for arm in asked["arms"] if arm in stored["question"]["arms"]]}
    if known != asked:
        return None
    return {arm.name: Timing(**stored["timings"][arm.name]) for arm in arms}


def _question(problem: Problem, arms: Sequence[Arm], steps: int) -> dict[str, Any]:
    return {"arms": [arm.describe() for arm in arms], "steps": steps, "problem": problem.describe()}


def _take_turns(
    problem: Problem, arms: Sequence[Arm], rates: Mapping[str, float], steps: int
) -> dict[str, list[float]]:
    """Seconds of each turn of each arm."""
    for arm in arms:  # caches and allocators are warm before the clock counts
        Training(problem, arm, lr=rates[arm.name], seed=0, steps=steps).step()
    trainings = {arm.name: Training(problem, arm, lr=rates[arm.name], seed=0, steps=steps) for arm in arms}
    turns: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for turn in range(0, steps, TURN):
        for name, training in trainings.items():
            before = training.seconds
            for _ in range(TURN):
                training.step()
            turns[name].append(training.seconds - before)
        print(f"clock: step {turn + TURN} of {steps}", flush=True)
    return turns
