"""One training run: warm-up and cosine, clipping, evaluations on the way, the clock on the steps alone."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adafisher_hf import __version__

from .arms import Arm
from .problem import Problem, Scores, Split

WARMUP_SHARE = 0.1
CLIP = 1.0
EVALUATIONS = 6


@dataclass(frozen=True)
class Run:
    """What is kept of a run. ``final``, a loss, is None where it diverged: infinity is not JSON.

    Attributes:
        accuracy: this and what follows are ``Scores``' at the end.
    """

    curve: list[tuple[int, float]]
    final: float | None
    step_ms: float
    state_bytes_per_parameter: float
    accuracy: float | None = None
    shifted: float | None = None
    f1: float | None = None
    exact: float | None = None
    calibration: float | None = None

    @property
    def loss(self) -> float:
        return math.inf if self.final is None else self.final

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def setting(problem: Problem, arm: Arm, *, lr: float, seed: int, steps: int, split: Split) -> dict[str, Any]:
    """All that a run's result depends on."""
    return {
        "problem": problem.describe(),
        "arm": arm.describe(),
        "lr": lr,
        "seed": seed,
        "steps": steps,
        "split": split,
        "version": __version__,
    }


class Training:
    """A model on its way: one optimizer step at a time, with the clock on the step alone.

    Attributes:
        seconds: spent in steps so far.
        steps_done: steps so far.
    """

    def __init__(self, problem: Problem, arm: Arm, *, lr: float, seed: int, steps: int):
        self.problem = problem
        self.model = problem.model(seed)
        self.optimizer = arm.build(self.model, lr)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: warmup_then_cosine(step, steps))
        self._batches = problem.batches(seed)
        self.seconds, self.steps_done = 0.0, 0

    def step(self) -> None:
        batch = next(self._batches)
        start = time.perf_counter()
        self.problem.loss(self.model, batch).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds += time.perf_counter() - start
        self._schedule.step()
        self.steps_done += 1

    def state_bytes_per_parameter(self) -> float:
        numbers = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        return sum(map(_bytes, _tensors(self.optimizer.state_dict()["state"]))) / numbers


def train(
    problem: Problem, arm: Arm, *, lr: float, seed: int, steps: int, split: Split, evaluations: int = EVALUATIONS
) -> Run:
    """Trains from the problem's start and evaluates on the split, so many times on the way and the last at the end."""
    training = Training(problem, arm, lr=lr, seed=seed, steps=steps)
    due = {round(steps * k / evaluations) for k in range(1, evaluations + 1)}
    curve: list[tuple[int, float]] = []
    scores = Scores(math.nan)
    for step in range(1, steps + 1):
        training.step()
        if step in due:
            scores = problem.evaluate(training.model, split)
            if not math.isfinite(scores.loss):
                break
            curve.append((step, scores.loss))
    reached_the_end = bool(curve) and curve[-1][0] == steps
    return Run(
        curve=curve,
        final=scores.loss if reached_the_end else None,
        step_ms=1e3 * training.seconds / training.steps_done,
        state_bytes_per_parameter=training.state_bytes_per_parameter(),
        **{name: value for name, value in scores._asdict().items() if name != "loss" and reached_the_end},
    )


def warmup_then_cosine(step: int, steps: int) -> float:
    """The factor of the learning rate for the step that comes after ``step`` finished ones."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for branch in tree.values():
            yield from _tensors(branch)
    elif isinstance(tree, (list, tuple)):
        for branch in tree:
            yield from _tensors(branch)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
