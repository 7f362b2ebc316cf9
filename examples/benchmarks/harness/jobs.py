"""A run to be made: an arm as it is set, a seed, a number of steps, and the split that is reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .arms import Arm
from .problem import Problem, Split
from .runner import EVALUATIONS, Run, setting, train

TUNING_SEED = 0


@dataclass(frozen=True)
class Job:
    arm: Arm
    lr: float
    seed: int
    steps: int
    split: Split

    def setting(self, problem: Problem) -> dict[str, Any]:
        return setting(problem, self.arm, lr=self.lr, seed=self.seed, steps=self.steps, split=self.split)

    def run(self, problem: Problem) -> Run:
        evaluations = EVALUATIONS if self.split == "eval" else 1  # nobody looks at the curves of tuning
        return train(
            problem,
            self.arm,
            lr=self.lr,
            seed=self.seed,
            steps=self.steps,
            split=self.split,
            evaluations=evaluations,
        )

    def __str__(self) -> str:
        knobs = ", ".join(f"{name}={value}" for name, value in self.arm.knobs.items())
        return f"{self.split}  {self.arm.name:30} lr {self.lr:g}  r {self.arm.ratio}  {knobs}  seed {self.seed}"
