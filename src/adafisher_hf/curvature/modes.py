"""How raw sums become the divisor of the momentum: one class for each ``mode``.

A mode sees one parameter at a time, as row and column factors; it knows neither modules nor the optimizer. Its state
lives in ``optimizer.state[p]`` under ``row_factor_k``, ``col_factor_k`` and ``factor_weight_k``, k counting the owners
of a tied weight. ``factor_weight`` is the sum of the weights of the moving average so far: it corrects the bias, and it
stays behind where an owner sat out a refresh.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels.divisor import Divisor
from .factors import Sums
from .layers import Layout
from .layers.base import Side

State = dict[str, Any]


@dataclass(frozen=True)
class Use:
    """The sums of one owner of a parameter since the last refresh, and how the parameter lies over them."""

    sums: Sums | None
    layout: Layout


class Mode:
    """Interface of the three modes."""

    uses_gradient = False  # a parameter without captured statistics falls back to its gradient
    failures = 0  # eigendecompositions that failed

    def init(self, state: State, index: int, layout: Layout, like: Tensor) -> None:
        """Adds the state of owner ``index`` to a parameter's state."""
        raise NotImplementedError

    def refresh(self, state: State, uses: list[Use], gamma: float) -> Tensor | None:
        """Takes one set of statistics into the moving averages, in place; returns its raw mean(F) where it has one."""
        raise NotImplementedError

    def divisor(self, state: State, layouts: list[Layout], damping: float) -> Divisor:
        """The divisor that the state stands for."""
        raise NotImplementedError

    def dense_sides(self, layout: Layout) -> tuple[str, ...]:
        """Which sides of a parameter, ``"row"`` and ``"col"``, have a full factor instead of a diagonal one."""
        return ()


class Calibrated(Mode):
    """F̂ = F / mean(F) + τ, from bias-corrected averages of statistics that are normalised one refresh at a time."""

    uses_gradient = True

    def init(self, state: State, index: int, layout: Layout, like: Tensor) -> None:
        stack, rows, cols = layout.shape
        state[f"row_factor_{index}"] = like.new_zeros(stack, rows)
        state[f"col_factor_{index}"] = like.new_zeros(stack, cols)
        state[f"factor_weight_{index}"] = like.new_zeros(stack if layout.independent else 1, 1)

    def refresh(self, state: State, uses: list[Use], gamma: float) -> Tensor:
        fired = {k: (use.sums, use.layout) for k, use in enumerate(uses) if use.sums is not None}
        factors = {k: self._row_and_col(*use) for k, use in fired.items()}
        means = {k: _block_mean(*factors[k], layout) / sums.rows for k, (sums, layout) in fired.items()}
        total = torch.stack([mean.nan_to_num(0.0) for mean in means.values()]).sum(0)
        for k, (sums, layout) in fired.items():
            row, col = factors[k]
            col_mean = diagonal(col).mean(-1, keepdim=True)
            col_mean = col_mean if layout.independent else col_mean.mean(0, keepdim=True)
            valid = torch.isfinite(means[k]) & (total > 0)
            gain = valid.to(row.dtype) * (1 - gamma)
            _average(state[f"row_factor_{k}"], row, col_mean / (sums.rows * total), valid, gain)
            _average(state[f"col_factor_{k}"], col, 1 / col_mean, valid, gain)
            state[f"factor_weight_{k}"].lerp_(torch.ones_like(gain), gain)
        return total

    def divisor(self, state: State, layouts: list[Layout], damping: float) -> Divisor:
        owners = range(len(layouts))
        rows = [_ratio(state[f"row_factor_{k}"], state[f"factor_weight_{k}"]) for k in owners]
        cols = [_ratio(state[f"col_factor_{k}"], state[f"factor_weight_{k}"]) for k in owners]
        return self._normalised(rows, cols, layouts[0], damping)

    def _row_and_col(self, sums: Sums, layout: Layout) -> tuple[Tensor, Tensor]:
        row, col = _row_and_col(sums, layout)
        dense = self.dense_sides(layout)
        return (row if "row" in dense else diagonal(row)), (col if "col" in dense else diagonal(col))

    def _normalised(self, rows: list[Tensor], cols: list[Tensor], layout: Layout, damping: float) -> Divisor:
        total = torch.stack([_block_mean(row, col, layout) for row, col in zip(rows, cols, strict=True)]).sum(0)
        return Divisor(
            rows=torch.stack([_ratio(row, total) for row in rows]),
            cols=torch.stack(cols),
            damping=_damping_or_one(total > 0, damping, total),
        )


class Paper(Mode):
    """Eq. 3-4 as printed: F̃ = H' ⊗ S' + λ, with H' and S' the min-max of bias-corrected averages."""

    def init(self, state: State, index: int, layout: Layout, like: Tensor) -> None:
        for side, length, key in ((layout.row, layout.shape[1], "row"), (layout.col, layout.shape[2], "col")):
            augmented = layout.bias_input + 1 if side != "output" and layout.bias_input else length
            state[f"{key}_factor_{index}"] = like.new_zeros(layout.shape[0], augmented)
        if layout.elementwise:
            state[f"col_factor_{index}"] = like.new_zeros(layout.shape[0], layout.shape[1])
        state[f"factor_weight_{index}"] = like.new_zeros(layout.shape[0] if layout.independent else 1, 1)

    def refresh(self, state: State, uses: list[Use], gamma: float) -> None:
        for k, use in enumerate(uses):
            if use.sums is None:
                continue
            rows = use.sums.rows
            gain = (rows > 0).to(rows.dtype).reshape(-1, 1) * (1 - gamma)
            for key, side in (("row_factor", use.layout.row), ("col_factor", use.layout.col)):
                state[f"{key}_{k}"].lerp_(_side(use, side) / rows.clamp(min=1.0), gain)
            state[f"factor_weight_{k}"].lerp_(torch.ones_like(gain), gain)

    def divisor(self, state: State, layouts: list[Layout], damping: float) -> Divisor:
        rows, cols, weights = [], [], []
        for k, layout in enumerate(layouts):
            weight = state[f"factor_weight_{k}"]
            row = self._normalised(_ratio(state[f"row_factor_{k}"], weight), layout, layout.row)
            col = self._normalised(_ratio(state[f"col_factor_{k}"], weight), layout, layout.col)
            row, col = (row * col, torch.ones_like(col[:, :1])) if layout.elementwise else (row, col)
            rows.append(row * (weight > 0))
            cols.append(col)
            weights.append(weight)
        damped = _damping_or_one(torch.stack(weights).sum(0) > 0, damping, weights[0])
        return Divisor(torch.stack(rows), torch.stack(cols), damped)

    def _normalised(self, factor: Tensor, layout: Layout, side: Side) -> Tensor:
        if side == "unit" and not layout.bias_input:
            return torch.ones_like(factor)
        return _pick(_min_max(factor), layout, side)


class Reference(Paper):
    """The published arithmetic: min-max first, then ``stored ← 0.1γ · stored + 0.01γ · new``, from ``stored = 1``."""

    def init(self, state: State, index: int, layout: Layout, like: Tensor) -> None:
        super().init(state, index, layout, like)
        for key in ("row_factor", "col_factor"):
            state[f"{key}_{index}"].fill_(1.0)

    def refresh(self, state: State, uses: list[Use], gamma: float) -> None:
        for k, use in enumerate(uses):
            if use.sums is None:
                continue
            for key, side in (("row_factor", use.layout.row), ("col_factor", use.layout.col)):
                stored = state[f"{key}_{k}"]
                raw = use.sums.output if side == "output" else use.sums.input
                new = 0.1 * gamma * stored + 0.01 * gamma * _min_max(raw, 1e-6)
                stored.copy_(torch.where(use.sums.rows > 0, new, stored))
            state[f"factor_weight_{k}"].fill_(1.0)

    def divisor(self, state: State, layouts: list[Layout], damping: float) -> Divisor:
        rows = [_pick(state[f"row_factor_{k}"], layout, layout.row) for k, layout in enumerate(layouts)]
        cols = [_pick(state[f"col_factor_{k}"], layout, layout.col) for k, layout in enumerate(layouts)]
        return Divisor(torch.stack(rows), torch.stack(cols), rows[0].new_full((1, 1, 1), damping))


def unit_divisor(layout: Layout, like: Tensor) -> Divisor:
    """D = 1, for a parameter without curvature in a mode that has no fallback."""
    stack, rows, cols = layout.shape
    return Divisor(like.new_zeros(1, stack, rows), like.new_zeros(1, stack, cols), like.new_ones(1, 1, 1))


def gradient_sums(grad: Tensor, layout: Layout, dense: tuple[str, ...] = ()) -> Sums:
    """The fallback: row and column sums of g² in place of Σδ² and Σh², the exact diagonal for vectors.

    Args:
        grad: the gradient, viewed as ``layout.shape``.
        dense: sides that get GGᵀ or GᵀG, of which the sums are the diagonal.
    """
    squared = grad.square()
    if layout.elementwise:
        return Sums(torch.ones_like(squared[..., 0]), squared[..., 0], squared.new_ones(()))
    sides = {
        layout.col: grad.mT @ grad if "col" in dense else squared.sum(1),
        layout.row: grad @ grad.mT if "row" in dense else squared.sum(2),
    }
    totals = squared.sum((1, 2)).unsqueeze(-1)
    rows = totals if layout.independent else squared.sum()
    if len(squared) > 1 and not layout.independent:  # groups of a convolution: each by its own total, not by theirs all
        share = _ratio(rows, totals)
        sides[layout.row] = sides[layout.row] * (share.unsqueeze(-1) if "row" in dense else share)
    return Sums(sides.get("input", rows), sides.get("output", rows), rows)


def _row_and_col(sums: Sums, layout: Layout) -> tuple[Tensor, Tensor]:
    """Raw row and column factor; F = row ⊗ col / sums.rows."""
    unit = sums.rows.expand(layout.shape[0], 1)
    if layout.elementwise:
        return sums.input * sums.output / sums.rows, unit
    sides = {"input": sums.input, "output": sums.output, "unit": unit}
    return sides[layout.row], sides[layout.col]


def _block_mean(row: Tensor, col: Tensor, layout: Layout) -> Tensor:
    """mean(row ⊗ col) = mean(row) · mean(col): one number a block, shape (blocks, 1)."""
    mean = diagonal(row).mean(-1, keepdim=True) * diagonal(col).mean(-1, keepdim=True)
    return mean if layout.independent else mean.mean(0, keepdim=True)


def _average(average: Tensor, new: Tensor, factor: Tensor, valid: Tensor, gain: Tensor) -> None:
    """average ← average + gain (factor · new - average), and unchanged where the new statistics are not valid."""
    if average.dim() == 3:
        factor, valid, gain = factor.unsqueeze(-1), valid.unsqueeze(-1), gain.unsqueeze(-1)
    average.lerp_(torch.where(valid, new * factor, average), gain)


def diagonal(factor: Tensor) -> Tensor:
    """(stack, d) of a factor that is dense, (stack, d, d), or diagonal already."""
    return factor.diagonal(dim1=-2, dim2=-1) if factor.dim() == 3 else factor


def _side(use: Use, side: Side) -> Tensor:
    """Raw sums of one side, the input augmented with its 1 where the layer has a bias (eq. 4)."""
    assert use.sums is not None
    if side == "output":
        return use.sums.output
    unit = use.sums.rows.expand(use.layout.shape[0], 1)
    if use.layout.bias_input:
        return torch.cat([use.sums.input, unit], dim=-1)
    return use.sums.input if side == "input" else unit


def _pick(factor: Tensor, layout: Layout, side: Side) -> Tensor:
    """The part of an augmented input that belongs to the weight (all but the last) or to the bias (the last)."""
    if side == "unit":
        return factor[..., -1:]
    return factor[..., :-1] if side == "input" and layout.bias_input else factor


def _min_max(x: Tensor, epsilon: float = 0.0) -> Tensor:
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    return _ratio(x - low, high - low + epsilon)


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    return torch.where(b > 0, a / b, 0.0)


def _damping_or_one(known: Tensor, damping: float, like: Tensor) -> Tensor:
    return torch.where(known, torch.full_like(like, damping), 1.0).unsqueeze(-1)
