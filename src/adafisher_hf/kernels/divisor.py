"""What the momentum is divided by, without ever being stored at full size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Divisor:
    """D = Σ_k rows_k ⊗ cols_k + damping, for a parameter seen as a stack of matrices.

    Attributes:
        rows: (owners, stack, R).
        cols: (owners, stack, C).
        damping: broadcasts to (stack, 1, 1).
    """

    rows: Tensor
    cols: Tensor
    damping: Tensor

    def dense(self, out: Tensor | None = None) -> Tensor:
        """D at full size, (stack, R, C), written into ``out`` where one is given."""
        rows, cols = self.rows.unsqueeze(-1), self.cols.unsqueeze(-2)
        out = torch.mul(rows[0], cols[0], out=out)
        for row, col in zip(rows[1:], cols[1:], strict=True):
            out.addcmul_(row, col)
        return out.add_(self.damping)

    def divide(self, momentum: Tensor, out: Tensor | None = None) -> Tensor:
        """momentum / D, using no memory but ``out``."""
        out = self.dense(out)
        return torch.div(momentum, out, out=out)

    def blocks(self) -> list[Divisor]:
        """One divisor for each matrix of the stack, for parameters whose matrices are blocks of their own."""
        stack = self.rows.shape[1]
        damping = self.damping.expand(stack, 1, 1)
        return [Divisor(self.rows[:, i : i + 1], self.cols[:, i : i + 1], damping[i : i + 1]) for i in range(stack)]
