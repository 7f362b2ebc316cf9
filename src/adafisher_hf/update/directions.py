"""The direction of every parameter, kept until its curvature, its damping or the rows that are here change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from ..preconditioners.base import Direction, Preconditioner, State
from ..preconditioners.pair import factor
from ..preconditioners.quotient import Quotient, unit
from ..statistics.block import Block
from .shards import Shard


@dataclass
class _Kept:
    direction: Direction
    damping: float
    parameter: Tensor | None = None
    shard: Shard | None = None
    parts: list[Direction] | None = None


class Directions:
    """Makes directions when they are asked for.

    Args:
        preconditioner: that makes them.
        pairs: the damping of pairs of adapters that take one step; None: each factor takes its own.
    """

    def __init__(self, preconditioner: Preconditioner, pairs: float | None = None):
        self._preconditioner, self._pairs = preconditioner, pairs
        self._kept: dict[int, _Kept] = {}

    def whole(self, block: Block, state: State, damping: float) -> Direction:
        """That of a whole parameter; the momentum itself where there is no curvature."""
        return self._of(block, state, damping).direction

    def parts(self, block: Block, state: State, damping: float) -> tuple[Shard, list[Direction]]:
        """The rows of a parameter that are here, and the direction of each of its blocks."""
        kept = self._of(block, state, damping)
        if kept.shard is None or kept.parts is None or kept.parameter is not block.parameter:
            kept.parameter, kept.shard = block.parameter, Shard.of(block.parameter, block.layouts[0])
            kept.parts = kept.shard.directions(kept.direction)
        return kept.shard, kept.parts

    def forget(self, blocks: Iterable[Block]) -> None:
        """The curvature of these has changed."""
        for block in blocks:
            self._kept.pop(id(block), None)

    def _of(self, block: Block, state: State, damping: float) -> _Kept:
        kept = self._kept.get(id(block))
        if kept is None or kept.damping != damping:
            kept = _Kept(self._make(block, state, damping), damping)
            self._kept[id(block)] = kept
        return kept

    def _make(self, block: Block, state: State, damping: float) -> Direction:
        if not self._preconditioner.measures(block):
            return unit(block.layouts[0], state["step"])
        direction = self._preconditioner.direction(state, block.layouts, damping)
        if self._pairs is None or block.partner is None or block.side is None or type(direction) is not Quotient:
            return direction
        couple = block if block.side == "a" else block.partner
        return factor(block.side, couple, direction, self._pairs, damping)
