"""``structure="diagonal"``: F = H ⊗ S from two vectors a weight, relative to its mean (AdaFisher, eq. 3-4, calibrated).

The state of owner k of a parameter is ``row_factor_k`` and ``col_factor_k``, each in units of its mean, and
``factor_weight_k``, the sum of the weights of the moving averages so far: it corrects their bias, and it stays behind
where an owner sat out a refresh.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..layers import Layout
from ..statistics.block import Use
from ..statistics.sums import Sums
from .base import Direction, Preconditioner, State, diagonal_of, ratio
from .quotient import Quotient


class Diagonal(Preconditioner):
    """F̂ = F / mean(F) + τ, from bias-corrected averages of statistics that have no unit."""

    fallback = True

    def init(self, state: State, layouts: list[Layout], like: Tensor) -> None:
        for k, layout in enumerate(layouts):
            stack, rows, cols = layout.shape
            state[f"row_factor_{k}"] = like.new_zeros(stack, rows)
            state[f"col_factor_{k}"] = like.new_zeros(stack, cols)
            state[f"factor_weight_{k}"] = like.new_zeros(stack if layout.independent else 1, 1)

    def refresh(self, state: State, uses: list[Use], gamma: float) -> Tensor:
        """Takes the sums of every owner k into its averages.

        With r and c the sums of both sides, n tokens, F_k = r ⊗ c / n and mean(F_k) = mean(r) · mean(c) / n::

            share_k = mean(F_k) / Σ_j mean(F_j)                      (of a tied weight; 1 where there is one owner)
            row_k ← γ row_k + (1 - γ) · share_k · r / mean(r)
            col_k ← γ col_k + (1 - γ) · c / mean(c)

        so that Σ_k row_k ⊗ col_k is F / mean(F) whatever the scale of the loss, and every entry of a factor is at most
        its length: finite for any sums. Nothing enters from sums that are not finite, or too small to have a mean.
        """
        fired = {k: self._normalised_use(use.sums, use.layout) for k, use in enumerate(uses) if use.sums is not None}
        logs = [use.log_mean for use in fired.values()]
        if len(logs) == 1:
            known = torch.isfinite(logs[0])
        else:
            known = torch.isfinite(torch.stack(logs)).any(0)
            fired = dict(zip(fired, _shared([(state, k, use) for k, use in fired.items()]), strict=True))
        gain = known.to(logs[0].dtype) * (1 - gamma)
        for k, use in fired.items():
            _average(state[f"row_factor_{k}"], use.row, known, gain)
            _average(state[f"col_factor_{k}"], use.col, known, gain)
            weight = state[f"factor_weight_{k}"]
            weight.lerp_(torch.ones_like(weight), gain)
        return torch.stack(logs).exp().sum(0)

    def direction(self, state: State, layouts: list[Layout], damping: float) -> Direction:
        return self._quotient(*self._corrected(state, layouts), layouts[0], damping)

    def _corrected(self, state: State, layouts: list[Layout]) -> tuple[list[Tensor], list[Tensor]]:
        """Diagonal rows and columns of every owner, without the bias of the averages."""
        weights = [state[f"factor_weight_{k}"] for k in range(len(layouts))]
        rows = [ratio(state[f"row_factor_{k}"], weight) for k, weight in enumerate(weights)]
        return rows, [ratio(state[f"col_factor_{k}"], weight) for k, weight in enumerate(weights)]

    def _quotient(self, rows: list[Tensor], cols: list[Tensor], layout: Layout, damping: float) -> Quotient:
        """F / mean(F) + τ; 1 where there is no curvature."""
        total = torch.stack([_block_mean(row, col, layout) for row, col in zip(rows, cols, strict=True)]).sum(0)
        known = total >= torch.finfo(total.dtype).tiny
        return Quotient(
            rows=torch.stack([torch.where(known, row / total, 0.0) for row in rows]),
            cols=torch.stack(cols),
            damping=torch.where(known, torch.full_like(total, damping), 1.0).unsqueeze(-1),
        )

    def _normalised_use(self, sums: Sums, layout: Layout) -> _NormalisedUse:
        row, col = row_and_col(sums, layout)
        dense = self.sides(layout)
        row, col = (row if "row" in dense else diagonal_of(row)), (col if "col" in dense else diagonal_of(col))
        row_mean, col_mean = _side_mean(row, layout), _side_mean(col, layout)
        row, col = row / _like(row_mean, row), col / _like(col_mean, col)
        mean = row_mean.log() + col_mean.log() - sums.tokens.log()
        if layout.shape[0] > 1 and not layout.independent:
            # Of several matrices in one block (groups of a convolution) the mean of F is no product of means.
            rest = _block_mean(diagonal_of(row), diagonal_of(col), layout)
            row, mean = row / _like(rest, row), mean + rest.log()
        known = (torch.minimum(row_mean, col_mean) >= torch.finfo(mean.dtype).tiny) & torch.isfinite(mean)
        return _NormalisedUse(row, col, torch.where(known, mean, -torch.inf))


class _NormalisedUse(NamedTuple):
    """Both sides of a use, so scaled that the mean of row ⊗ col is 1.

    Attributes:
        row: (stack, R) or (stack, R, R).
        col: (stack, C) or (stack, C, C).
        log_mean: log mean(F), (blocks, 1), as F itself may be out of its dtype's range; -inf where there is nothing to
            divide by.
    """

    row: Tensor
    col: Tensor
    log_mean: Tensor


def row_and_col(sums: Sums, layout: Layout) -> tuple[Tensor, Tensor]:
    """The sums along rows and columns of a parameter; F = row ⊗ col / tokens."""
    unit = sums.tokens.expand(layout.shape[0], 1)
    if layout.elementwise:
        return sums.input / sums.tokens * sums.output, unit
    sides = {"input": sums.input, "output": sums.output, "unit": unit}
    return sides[layout.row], sides[layout.col]


def _side_mean(side: Tensor, layout: Layout) -> Tensor:
    """One number a block, (blocks, 1)."""
    mean = diagonal_of(side).mean(-1, keepdim=True)
    return mean if layout.independent else mean.mean(0, keepdim=True)


def _block_mean(row: Tensor, col: Tensor, layout: Layout) -> Tensor:
    """mean(row ⊗ col) of diagonal sides: one number a block, (blocks, 1)."""
    mean = row.mean(-1, keepdim=True) * col.mean(-1, keepdim=True)
    return mean if layout.independent else mean.mean(0, keepdim=True)


def _like(x: Tensor, factor: Tensor) -> Tensor:
    """A number a block, so that it broadcasts to a factor that is diagonal or dense."""
    return x.unsqueeze(-1) if factor.dim() == 3 else x


def _shared(uses: list[tuple[State, int, _NormalisedUse]]) -> list[_NormalisedUse]:
    """The uses of a tied weight, each by its share of the curvature; one that had none takes in F_k = 0."""
    logs = torch.stack([use.log_mean for _, _, use in uses])
    shares = torch.softmax(logs, 0).nan_to_num(0.0).unbind()
    found = []
    for share, (state, k, use) in zip(shares, uses, strict=True):
        known = torch.isfinite(use.log_mean)
        row = torch.where(_like(known, use.row), use.row, 0.0) * _like(share, use.row)
        # Its columns say nothing: their average stays as it is.
        weight, col = state[f"factor_weight_{k}"], state[f"col_factor_{k}"]
        flat = torch.eye(col.shape[-1], dtype=col.dtype, device=col.device) if col.dim() == 3 else 1.0
        average = torch.where(_like(weight, col) > 0, col / _like(weight, col), flat)
        found.append(_NormalisedUse(row, torch.where(_like(known, col), use.col, average), use.log_mean))
    return found


def _average(average: Tensor, new: Tensor, known: Tensor, gain: Tensor) -> None:
    """average ← average + gain (new - average), and unchanged where it is not known, whatever the new one is."""
    average.lerp_(torch.where(_like(known, average), new, average), _like(gain, average))
