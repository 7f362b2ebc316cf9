"""The rows of each block that lie on this rank, and their part of the divisor.

Momentum is split like its parameter; factors and scalars are the same on all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.distributed as dist
from torch import Tensor

from .curvature.layers import Layout
from .kernels import Divisor
from .sharding import is_sharded

_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13


@dataclass(frozen=True)
class Piece:
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

    @classmethod
    def of(cls, parameter: Any, layout: Layout) -> Piece:
        """The piece of a parameter, or all of it."""
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

    def divisors(self, divisor: Divisor) -> list[Divisor]:
        """The part of D for each of ``views``."""
        if self.layout.independent:
            first, last = self._matrices()
            blocks = enumerate(divisor.blocks())
            return [block if first <= i < last else block.matrices(slice(0)) for i, block in blocks]
        if self.ranks is None:
            return [divisor]
        if divisor.basis.rows is not None:
            return [Gathered(divisor.rows, divisor.cols, divisor.damping, divisor.basis, piece=self)]
        return [divisor.some_rows(self.start, self.stop)]

    def sizes(self) -> list[int]:
        """How many numbers each block has on all ranks together."""
        stack, rows, cols = self.layout.shape
        return [rows * cols] * stack if self.layout.independent else [stack * rows * cols]

    def gather(self, mine: Tensor) -> Tensor:
        """All matrices of the parameter, from one of ``views`` on each rank."""
        cols = self.layout.shape[2]
        padded = mine.new_zeros(self.chunk, cols)
        padded[: self.stop - self.start] = mine.reshape(-1, cols)
        gathered = mine.new_empty(self.chunk * dist.get_world_size(self.ranks), cols)
        _all_gather(gathered, padded, group=self.ranks)
        return gathered[: self.layout.shape[0] * self.layout.shape[1]].view(self.layout.shape)

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


@dataclass(frozen=True)
class Gathered(Divisor):
    """D in a basis that mixes the rows of all ranks: they gather the momentum, at the cost of one all-gather."""

    gathers: ClassVar[bool] = True

    piece: Piece | None = None

    def divide(self, momentum: Tensor, out: Tensor | None = None) -> Tensor:
        """This rank's rows of momentum / D."""
        assert self.piece is not None
        everything = self.piece.gather(momentum).to(self.rows.dtype)
        quotient = self.piece.mine(super().divide(everything))
        return quotient if out is None else out.copy_(quotient)
