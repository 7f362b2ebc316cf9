"""What is due at which step. Pure: the only state is the number of steps, which is the optimizer's."""

from __future__ import annotations

from dataclasses import dataclass

DENSE_BASES = 20  # refreshes at which every basis is made anew: early on the curvature turns from step to step


@dataclass(frozen=True)
class Schedule:
    """Refreshes are dense first, then sparse.

    Attributes:
        warmup: so many steps refresh, each of them.
        interval: steps between two refreshes afterwards.
        gamma: decay of the averages a refresh; None: 0.95 while refreshes are dense, then 0.8.
        basis_interval: refreshes between two renewals of a parameter.
    """

    warmup: int
    interval: int
    gamma: float | None
    basis_interval: int

    def refreshes(self, step: int) -> bool:
        """Whether the curvature is refreshed at this step."""
        return step < self.warmup or step % self.interval == 0

    def gamma_at(self, step: int) -> float:
        """What the averages keep at this step's refresh."""
        if self.gamma is not None:
            return self.gamma
        return 0.95 if step < self.warmup else 0.8

    def turn(self, step: int) -> int:
        """About how many refreshes there were before this step: it moves by one from each to the next."""
        dense = min(step, self.warmup)
        return dense + (step // self.interval - dense // self.interval)

    def is_renewed(self, step: int, index: int) -> bool:
        """Whether block ``index`` is renewed at this step's refresh: all at first, then in turns, so no step stalls."""
        refresh = self.turn(step)
        return refresh < DENSE_BASES or (refresh + index) % self.basis_interval == 0
