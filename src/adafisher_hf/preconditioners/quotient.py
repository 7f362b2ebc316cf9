"""The direction momentum / D of a D that is diagonal, without D ever being stored at full size."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..layers import Layout
from .base import Direction

Self = TypeVar("Self", bound="Quotient")


@dataclass(frozen=True)
class Quotient(Direction):
    """momentum / D, with D = Σ_k rows_k ⊗ cols_k + damping.

    Attributes:
        rows: (owners, stack, R).
        cols: (owners, stack, C).
        damping: (stack, 1, 1), or (1, 1, 1) for all.
    """

    rows: Tensor
    cols: Tensor
    damping: Tensor

    def dense(self, out: Tensor | None = None) -> Tensor:
        rows, cols = self.rows.unsqueeze(-1), self.cols.unsqueeze(-2)
        out = torch.mul(rows[0], cols[0], out=out)
        for row, col in zip(rows[1:], cols[1:], strict=True):
            out.addcmul_(row, col)
        return out.add_(self.damping)

    def apply(self, momentum: Tensor, out: Tensor | None = None) -> Tensor:
        out = self.dense(out)
        return torch.div(momentum, out, out=out)

    def sample(self, size: int) -> Tensor:
        rows, cols = (slice(None, None, max(1, side.shape[-1] // size)) for side in (self.rows, self.cols))
        return Quotient(self.rows[..., rows], self.cols[..., cols], self.damping).dense()

    def matrices(self: Self, chosen: slice) -> Self:
        damping = self.damping.expand(self.rows.shape[1], 1, 1)[chosen]
        return dataclasses.replace(self, rows=self.rows[:, chosen], cols=self.cols[:, chosen], damping=damping)

    def some_rows(self: Self, start: int, stop: int) -> Self:
        owners, stack, length = self.rows.shape
        if stack == 1:
            return dataclasses.replace(self, rows=self.rows[..., start:stop])
        matrix = torch.arange(start, stop, device=self.rows.device) // length
        return dataclasses.replace(
            self,
            rows=self.rows.reshape(owners, stack * length, 1)[:, start:stop],
            cols=self.cols[:, matrix],
            damping=self.damping.expand(stack, 1, 1)[matrix],
        )


def unit(layout: Layout, like: Tensor) -> Quotient:
    """D = 1: the momentum as it is, for a parameter without curvature."""
    stack, rows, cols = layout.shape
    return Quotient(like.new_zeros(1, stack, rows), like.new_zeros(1, stack, cols), like.new_ones(1, 1, 1))
