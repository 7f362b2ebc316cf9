"""``mode="paper"``: eq. 3-4 of arXiv 2405.16397 as printed, F̃ = H' ⊗ S' + λ, with H' and S' min-max normalised."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layers import Layout
from ..layers.base import Side
from ..statistics.block import Use
from .base import Direction, Preconditioner, State, ratio
from .quotient import Quotient


class Paper(Preconditioner):
    """Min-max of bias-corrected averages; a parameter without an owner has F̃ = 1, and the update no graft."""

    grafted = False

    def init(self, state: State, layouts: list[Layout], like: Tensor) -> None:
        for k, layout in enumerate(layouts):
            for side, length, key in ((layout.row, layout.shape[1], "row"), (layout.col, layout.shape[2], "col")):
                augmented = layout.bias_input + 1 if side != "output" and layout.bias_input else length
                state[f"{key}_factor_{k}"] = like.new_zeros(layout.shape[0], augmented)
            if layout.elementwise:
                state[f"col_factor_{k}"] = like.new_zeros(layout.shape[0], layout.shape[1])
            state[f"factor_weight_{k}"] = like.new_zeros(layout.shape[0] if layout.independent else 1, 1)

    def refresh(self, state: State, uses: list[Use], gamma: float) -> None:
        """H ← γ H + (1 - γ) H_new, and S: means over tokens (eq. 3)."""
        for k, use in enumerate(uses):
            if use.sums is None:
                continue
            tokens = use.sums.tokens
            gain = (tokens > 0).to(tokens.dtype).reshape(-1, 1) * (1 - gamma)
            for key, side in (("row_factor", use.layout.row), ("col_factor", use.layout.col)):
                state[f"{key}_{k}"].lerp_(_augmented(use, side) / tokens.clamp(min=1.0), gain)
            state[f"factor_weight_{k}"].lerp_(torch.ones_like(gain), gain)

    def direction(self, state: State, layouts: list[Layout], damping: float) -> Direction:
        rows, cols, weights = [], [], []
        for k, layout in enumerate(layouts):
            weight = state[f"factor_weight_{k}"]
            row = _normalised(ratio(state[f"row_factor_{k}"], weight), layout, layout.row)
            col = _normalised(ratio(state[f"col_factor_{k}"], weight), layout, layout.col)
            row, col = (row * col, torch.ones_like(col[:, :1])) if layout.elementwise else (row, col)
            rows.append(row * (weight > 0))
            cols.append(col)
            weights.append(weight)
        known = torch.stack(weights).sum(0) > 0
        damped = torch.where(known, torch.full_like(weights[0], damping), 1.0).unsqueeze(-1)
        return Quotient(torch.stack(rows), torch.stack(cols), damped)


def own_part(factor: Tensor, layout: Layout, side: Side) -> Tensor:
    """The part of an augmented input that belongs to the weight (all but the last) or to the bias (the last)."""
    if side == "unit":
        return factor[..., -1:]
    return factor[..., :-1] if side == "input" and layout.bias_input else factor


def min_max(x: Tensor, epsilon: float = 0.0) -> Tensor:
    """(x - min x) / (max x - min x + epsilon), 0 where that is nothing."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    return ratio(x - low, high - low + epsilon)


def _augmented(use: Use, side: Side) -> Tensor:
    """Raw sums of one side, the input augmented with its 1 where the layer has a bias (eq. 4)."""
    assert use.sums is not None
    if side == "output":
        return use.sums.output
    unit = use.sums.tokens.expand(use.layout.shape[0], 1)
    if use.layout.bias_input:
        return torch.cat([use.sums.input, unit], dim=-1)
    return use.sums.input if side == "input" else unit


def _normalised(factor: Tensor, layout: Layout, side: Side) -> Tensor:
    if side == "unit" and not layout.bias_input:
        return torch.ones_like(factor)
    return own_part(min_max(factor), layout, side)
