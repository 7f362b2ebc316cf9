"""``mode="reference"``: what the published code computes, to be compared with (algorithm and oddities: docs)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..layers import Layout
from ..layers.reference import REFERENCE_KINDS
from ..statistics.block import Use, Wanted
from ..statistics.reference import ReferenceTap
from .base import Direction, State
from .paper import Paper, min_max, own_part
from .quotient import Quotient


class Reference(Paper):
    """The published arithmetic: min-max first, then ``stored ← 0.1γ · stored + 0.01γ · new``, from ``stored = 1``."""

    @classmethod
    def refuses(cls, config: Any, *, sharded: bool, ranks: int) -> str | None:
        if ranks > 1:
            return "mode='reference' is the published arithmetic of one process: use mode='calibrated'"
        return None

    def wanted(self) -> Wanted:
        return Wanted(self.sides, kinds=REFERENCE_KINDS, tap=ReferenceTap, fallback=False, additive=False)

    def init(self, state: State, layouts: list[Layout], like: Tensor) -> None:
        super().init(state, layouts, like)
        for k in range(len(layouts)):
            for key in ("row_factor", "col_factor"):
                state[f"{key}_{k}"].fill_(1.0)

    def refresh(self, state: State, uses: list[Use], gamma: float) -> None:
        for k, use in enumerate(uses):
            if use.sums is None:
                continue
            for key, side in (("row_factor", use.layout.row), ("col_factor", use.layout.col)):
                stored = state[f"{key}_{k}"]
                raw = use.sums.output if side == "output" else use.sums.input
                new = 0.1 * gamma * stored + 0.01 * gamma * min_max(raw, 1e-6)
                stored.copy_(torch.where(use.sums.tokens > 0, new, stored))
            state[f"factor_weight_{k}"].fill_(1.0)

    def direction(self, state: State, layouts: list[Layout], damping: float) -> Direction:
        rows = [own_part(state[f"row_factor_{k}"], layout, layout.row) for k, layout in enumerate(layouts)]
        cols = [own_part(state[f"col_factor_{k}"], layout, layout.col) for k, layout in enumerate(layouts)]
        return Quotient(torch.stack(rows), torch.stack(cols), rows[0].new_full((1, 1, 1), damping))
