"""How long a run takes, relative to the first arm: all arms train side by side and take turns, a few steps each."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .arms import Arm
from .problem import Problem
from .runner import Training

TURN = 10  # steps


@dataclass(frozen=True)
class Timing:
    """An arm's clock.

    Attributes:
        step_ms: mean over the run.
        ratio: time of the run relative to the first arm's.
        steady: the same in the second half, when the dense warm-up is over; median over the turns.
        worst: the slowest turn relative to the first arm's median turn.
    """

    step_ms: float
    ratio: float
    steady: float
    worst: float


def time_arms(
    problem: Problem, arms: Sequence[Arm], rates: Mapping[str, float], steps: int, path: Path
) -> dict[str, Timing]:
    """Times a run of every arm; or reads the file of an earlier call for the same arms and steps."""
    question = {"arms": [arm.describe() for arm in arms], "steps": steps, "problem": problem.describe()}
    if path.exists():
        stored = json.loads(path.read_text())
        if stored["question"] == question:
            return {name: Timing(**values) for name, values in stored["timings"].items()}
    turns = _take_turns(problem, arms, rates, steps)
    timings = {name: _timing(seconds, turns[arms[0].name], steps) for name, seconds in turns.items()}
    content = {"question": question, "timings": {name: asdict(timing) for name, timing in timings.items()}}
    path.write_text(json.dumps(content, indent=1))
    return timings


def _take_turns(
    problem: Problem, arms: Sequence[Arm], rates: Mapping[str, float], steps: int
) -> dict[str, list[float]]:
    """Seconds of each turn of each arm."""
    trainings = {arm.name: Training(problem, arm, lr=rates[arm.name], seed=0, steps=steps) for arm in arms}
    for arm in arms:  # caches and allocators are warm before the clock counts
        Training(problem, arm, lr=rates[arm.name], seed=0, steps=steps).step()
    turns: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for turn in range(0, steps, TURN):
        for name, training in trainings.items():
            before = training.seconds
            for _ in range(min(TURN, steps - turn)):
                training.step()
            turns[name].append(training.seconds - before)
        print(f"clock: step {min(turn + TURN, steps)} of {steps}", flush=True)
    return turns


def _timing(seconds: Sequence[float], baseline: Sequence[float], steps: int) -> Timing:
    pairs = list(zip(seconds, baseline, strict=True))
    return Timing(
        step_ms=1e3 * sum(seconds) / steps,
        ratio=sum(seconds) / sum(baseline),
        steady=statistics.median(own / base for own, base in pairs[len(pairs) // 2 :]),
        worst=max(seconds) / statistics.median(baseline),
    )
