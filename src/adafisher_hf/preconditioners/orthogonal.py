"""``structure="orthogonal"``: the diagonal Fisher direction of hidden matrices, orthogonalised.

u = NS(a / F̂): what Newton-Schulz cannot see, the scale of inputs and outputs, the diagonals repair; what they cannot
see, the spectrum, it flattens. ‖a‖ gives the length as for the other structures. All else keeps the diagonal, and
vocabulary-sided weights a full factor on their narrow side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layers import Layout
from ..layers.fused import Fused
from .base import Direction, Sides, State
from .iterations import load_iteration
from .kronecker import SIDES, Kronecker
from .newton_schulz import Iteration, orthogonalised
from .quotient import Quotient


@dataclass(frozen=True)
class Orthogonalised(Direction):
    """NS(momentum / D), each matrix of the stack and each part of a fused projection by itself.

    Attributes:
        quotient: what the momentum is divided by first.
        iteration: of ITERATIONS.
        steps: of the iteration.
        fused: how the outputs are shared out; None: one matrix.
        output_dim: of the view, along which the outputs run.
    """

    quotient: Quotient
    iteration: Iteration
    steps: int
    fused: Fused | None = None
    output_dim: int = -2
    needs = "matrix"
    shared = True

    def apply(self, momentum: Tensor, out: Tensor | None = None) -> Tensor:
        out = torch.empty_like(momentum) if out is None else out
        self.apply_all([self], [momentum], [out], [])
        return out

    @classmethod
    def apply_all(
        cls,
        directions: Sequence[Direction],
        momenta: Sequence[Tensor],
        out: Sequence[Tensor],
        weights: Sequence[Tensor],
    ) -> None:
        ours = [direction for direction in directions if isinstance(direction, Orthogonalised)]
        parts: list[list[Tensor]] = []
        for direction, momentum, quotient in zip(ours, momenta, out, strict=True):
            parts.append(direction._parts(direction.quotient.apply(momentum, out=quotient)))
        done = _in_batches(parts, ours)
        for direction, some, quotient in zip(ours, done, out, strict=True):
            quotient.copy_(direction._joined(some))

    def dense(self) -> Tensor:
        return self.quotient.dense()

    def sample(self, size: int) -> Tensor:
        return self.quotient.sample(size)

    def matrices(self, chosen: slice) -> Orthogonalised:
        return dataclasses.replace(self, quotient=self.quotient.matrices(chosen))

    def _parts(self, whole: Tensor) -> list[Tensor]:
        return [whole] if self.fused is None else self.fused.split(whole, self.output_dim)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        return parts[0] if self.fused is None else self.fused.join(parts, self.output_dim)


class Orthogonal(Kronecker):
    """Calibrated diagonal curvature, and hidden matrices orthogonalised after it.

    Args:
        max_factor_dim: a narrow side longer than this keeps a diagonal factor.
        narrow_side: whether vocabulary-sided weights have a full factor at all.
        iteration: of ITERATIONS.
        steps: of the iteration.
    """

    def __init__(self, max_factor_dim: int, narrow_side: bool, iteration: Iteration, steps: int):
        super().__init__(max_factor_dim, rotated=False, decay=0.0)
        self.narrow_side, self.iteration, self.steps = narrow_side, iteration, steps
        self.renews = narrow_side

    @classmethod
    def from_config(cls, config: Any) -> Orthogonal:
        return cls(config.max_factor_dim, config.narrow_side, load_iteration(config.iteration), config.iteration_steps)

    def sides(self, layout: Layout) -> Sides:
        if layout.role != "vocabulary" or not self.narrow_side:
            return ()
        _, rows, cols = layout.shape
        narrow = SIDES[0] if rows < cols else SIDES[1]
        return tuple(side for side in super().sides(layout) if side == narrow)

    def direction(self, state: State, layouts: list[Layout], damping: float) -> Direction:
        divided = super().direction(state, layouts, damping)
        layout = layouts[0]
        if layout.role != "hidden" or not isinstance(divided, Quotient):
            return divided
        return Orthogonalised(divided, self.iteration, self.steps, layout.fused, layout.output_dim)

    def advice(self, layouts: Iterable[Layout]) -> str | None:
        return None

    def treatment(self, layout: Layout) -> str:
        if layout.role != "hidden":
            return super().treatment(layout)
        matrices = layout.shape[0] * (1 if layout.fused is None else len(layout.fused.sizes))
        return "orthogonalised" if matrices == 1 else f"orthogonalised, {matrices} matrices"


def _in_batches(parts: list[list[Tensor]], directions: Sequence[Orthogonalised]) -> list[list[Tensor]]:
    """All parts orthogonalised, those of equal shape together, a matrix and a transposed one too."""
    done: list[list[Tensor]] = [[some[0]] * len(some) for some in parts]
    batches: dict[tuple, list[tuple[int, int]]] = {}
    for i, (some, direction) in enumerate(zip(parts, directions, strict=True)):
        for j, part in enumerate(some):
            key = (*sorted(part.shape[-2:]), part.dtype, part.device, direction.iteration, direction.steps)
            batches.setdefault(key, []).append((i, j))
    for (*_, iteration, steps), places in batches.items():
        wide = [_wide(parts[i][j]) for i, j in places]
        results = orthogonalised(torch.cat(wide), iteration, steps).split([len(matrix) for matrix in wide])
        for (i, j), result in zip(places, results, strict=True):
            done[i][j] = result if _is_wide(parts[i][j]) else result.mT
    return done


def _is_wide(x: Tensor) -> bool:
    return x.shape[-2] <= x.shape[-1]


def _wide(x: Tensor) -> Tensor:
    return x if _is_wide(x) else x.mT
