"""The rows of each parameter that lie on this rank, and the gather that a direction asks for when it needs the others.

Momentum is split like its parameter; factors and scalars are the same on all ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..compat import all_gather
from ..layers import Layout
from ..preconditioners.base import Direction
from ..ranks import is_sharded


@dataclass(frozen=True)
class Shard:
    """The rows ``start`` to ``stop`` of a parameter, its matrices laid one below the other.

    Attributes:
        layout: of the whole parameter.
        ranks: the group of those that hold the other rows; None where this rank holds all.
        chunk: how many rows each of them holds, but for the last ones, which may have fewer or none.
    """

    layout: Layout
    start: int
    stop: int
    ranks: dist.ProcessGroup | None = None
    chunk: int = 0
    shared_by = 1  # all ranks need the whole of it

    @classmethod
    def of(cls, parameter: Any, layout: Layout) -> Shard:
        """The rows of a parameter that are here, or all of them."""
        rows = layout.shape[0] * layout.shape[1]
        if not is_sharded(parameter):
            return cls(layout, 0, rows)
        mesh, length, dimension = parameter.device_mesh, parameter.shape[0], parameter.device_mesh.ndim - 1
        chunk = -(-length // mesh.size(dimension)) * (rows // length)  # FSDP2 cuts the first dimension as torch.chunk
        rank = mesh.get_local_rank(dimension)
        return cls(layout, min(rank * chunk, rows), min((rank + 1) * chunk, rows), mesh.get_group(dimension), chunk)

    def views(self, tensor: Tensor) -> list[Tensor]:
        """The local part of a tensor as stacks of matrices: one a block, without any where the block lies elsewhere."""
        stack, rows, cols = self.layout.shape
        if not self.layout.independent:
            return [tensor.reshape(self._shape())]
        first, last = self._matrices()
        view = tensor.reshape(last - first, rows, cols)
        return [view[i - first : i - first + 1] if first <= i < last else view[:0] for i in range(stack)]

    def narrowed(self, times: int) -> Shard:
        """The same rows with so many times fewer columns."""
        stack, rows, cols = self.layout.shape
        return dataclasses.replace(self, layout=dataclasses.replace(self.layout, shape=(stack, rows, cols // times)))

    def directions(self, direction: Direction) -> list[Direction]:
        """The direction of each of ``views``; a whole one where it needs what other ranks hold."""
        if self.layout.independent:
            first, last = self._matrices()
            stack = range(self.layout.shape[0])
            return [direction.matrices(slice(i, i + 1) if first <= i < last else slice(0)) for i in stack]
        if self.ranks is None or self.has_to_gather(direction):
            return [direction]
        return [direction.some_rows(self.start, self.stop)]

    def has_to_gather(self, direction: Direction) -> bool:
        """Whether a direction needs rows that other ranks hold."""
        return self.ranks is not None and not self.layout.independent and direction.needs in ("matrix", "pair")

    def sizes(self) -> list[int]:
        """How many numbers each block has on all ranks together."""
        stack, rows, cols = self.layout.shape
        return [rows * cols] * stack if self.layout.independent else [stack * rows * cols]

    def mine(self, everything: Tensor) -> Tensor:
        """The rows of all matrices that are here, as in ``views``."""
        return everything.reshape(-1, self.layout.shape[2])[self.start : self.stop].view(self._shape())

    def _shape(self) -> tuple[int, int, int]:
        stack, _, cols = self.layout.shape
        if self.ranks is None:
            return self.layout.shape
        # Groups of a convolution may be cut in two: then every row is a matrix of its own.
        return (1, self.stop - self.start, cols) if stack == 1 else (self.stop - self.start, 1, cols)

    def _matrices(self) -> tuple[int, int]:
        rows = max(self.layout.shape[1], 1)
        return self.start // rows, self.stop // rows


def gather_matrices(parts: list[tuple[Hashable, Shard, Tensor]]) -> dict[Any, Tensor]:
    """All matrices of the parameters of which each rank has some rows: one message a group of ranks and dtype.

    Args:
        parts: a key, which rows of what, and these rows.
    """
    found: dict[Any, Tensor] = {}
    for ranks, dtype in dict.fromkeys((shard.ranks, momentum.dtype) for _, shard, momentum in parts):
        some = [part for part in parts if part[1].ranks is ranks and part[2].dtype is dtype]
        mine = torch.cat([_padded(shard, momentum) for _, shard, momentum in some])
        flat = mine.new_empty(len(mine) * dist.get_world_size(ranks))
        all_gather(flat, mine, group=ranks)
        lengths = [shard.chunk * shard.layout.shape[2] for _, shard, _ in some]
        pieces = flat.view(-1, len(mine)).split(lengths, dim=1)
        for (i, shard, _), piece in zip(some, pieces, strict=True):
            stack, rows, cols = shard.layout.shape
            found[i] = piece.reshape(-1, cols)[: stack * rows].view(shard.layout.shape)
    return found


def _padded(shard: Shard, momentum: Tensor) -> Tensor:
    padded = momentum.new_zeros(shard.chunk * shard.layout.shape[2])
    padded[: momentum.numel()] = momentum.reshape(-1)
    return padded
