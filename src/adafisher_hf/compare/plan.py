"""Which runs are wanted: every learning rate with the first seed, then an arm's best one with the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .arms import Arm, shown


@dataclass(frozen=True)
class Job:
    """A run to be made."""

    arm: Arm
    lr: float
    seed: int

    def __str__(self) -> str:
        return f"{self.arm} lr={shown(self.lr)}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """Of a comparison.

    Attributes:
        arms: the baseline first.
        seeds: how many; the first, 0, chooses the learning rates.
    """

    arms: Sequence[Arm]
    seeds: int

    @property
    def baseline(self) -> Arm:
        return self.arms[0]

    @property
    def final_seeds(self) -> range:
        """The seeds that are reported, where there are others than the one that chooses."""
        return range(1, self.seeds)

    def tuning(self, arm: Arm) -> list[Job]:
        """An arm's runs with the first seed, the middle of its grid first: where time ends early it says most."""
        middle = (len(arm.rates) - 1) / 2
        rates = sorted(arm.rates)
        order = sorted(rates, key=lambda lr: abs(rates.index(lr) - middle))
        return [Job(arm, lr, 0) for lr in order]

    def finals(self, arm: Arm, lr: float) -> list[Job]:
        """An arm's runs with the other seeds."""
        return [Job(arm, lr, seed) for seed in self.final_seeds]

    def wanted(self, costs: Mapping[Job, float]) -> list[Job]:
        """The runs that are to be made next, in this order: those of the arm that is least far first.

        Args:
            costs: of the runs that have ended, the lower the better; infinite: of no use.
        """
        turns = [turn for arm in self.arms for turn in enumerate(self._of(arm, costs)) if turn[1] not in costs]
        return [job for _, job in sorted(turns, key=lambda turn: turn[0])]

    def best(self, arm: Arm, costs: Mapping[Job, float]) -> float | None:
        """The learning rate with the lowest cost of those that have been tried; None: none is of any use."""
        tried = {job.lr: costs[job] for job in self.tuning(arm) if costs.get(job, math.inf) < math.inf}
        return min(tried, key=tried.__getitem__, default=None)

    def count(self) -> int:
        """How many runs there are in all, if no arm fails altogether."""
        return sum(len(arm.rates) + len(self.final_seeds) for arm in self.arms)

    def _of(self, arm: Arm, costs: Mapping[Job, float]) -> list[Job]:
        """All runs of an arm that are known to be wanted by now."""
        tuning = self.tuning(arm)
        lr = self.best(arm, costs) if all(job in costs for job in tuning) else None
        return tuning if lr is None else [*tuning, *self.finals(arm, lr)]
