"""Directions that are dear, shared out over ranks that all take the same step: each makes some and tells the others.

Under DDP every rank has the whole momentum; that each of them orthogonalised every matrix would be the same work done
many times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

MOST = 8  # ranks whose matrices a bucket holds at once


@dataclass(frozen=True)
class Turn:
    """A direction that one of these ranks makes for all.

    Attributes:
        ranks: that hold the same parameter and momentum.
    """

    ranks: dist.ProcessGroup

    @property
    def shared_by(self) -> int:
        """How many of them may be worked on at the same time."""
        return min(MOST, dist.get_world_size(self.ranks))


def owners(out: Sequence[Tensor], ranks: int) -> list[int]:
    """Which rank makes each direction: the dearest first, each by the rank that has least to do; alike everywhere."""
    work, found = [0.0] * ranks, [0] * len(out)
    costs = [quotient.numel() * min(quotient.shape[-2:]) for quotient in out]
    for i in sorted(range(len(out)), key=lambda i: -costs[i]):
        found[i] = min(range(ranks), key=work.__getitem__)
        work[found[i]] += costs[i]
    return found


def exchange(out: Sequence[Tensor], made_by: Sequence[int], ranks: dist.ProcessGroup) -> None:
    """Gives every rank all directions: one message from each rank that made some, of one dtype.

    Args:
        out: a direction each; on the rank that made it, it is finished; written to elsewhere.
        made_by: a rank of the group each.
    """
    me = dist.get_rank(ranks)
    for rank in sorted(set(made_by)):
        part = [quotient for quotient, maker in zip(out, made_by, strict=True) if maker == rank]
        size = sum(quotient.numel() for quotient in part)
        flat = torch.cat([quotient.reshape(-1) for quotient in part]) if rank == me else part[0].new_empty(size)
        dist.broadcast(flat, src=dist.get_global_rank(ranks, rank), group=ranks)
        if rank == me:
            continue
        pieces = flat.split([quotient.numel() for quotient in part])
        for quotient, numbers in zip(part, pieces, strict=True):
            quotient.copy_(numbers.view(quotient.shape))
