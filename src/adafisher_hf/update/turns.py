"""Directions that are dear, shared out over ranks that all take the same step: each makes some, one gather brings all.

Under DDP every rank has the whole momentum; that each of them orthogonalised every matrix would be the same work done
many times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..compat import all_gather

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
    """Gives every rank all directions: one message a dtype.

    Args:
        out: a direction each; on the rank that made it, it is finished; written to elsewhere.
        made_by: a rank of the group each.
    """
    for dtype in dict.fromkeys(quotient.dtype for quotient in out):
        some = [(quotient, rank) for quotient, rank in zip(out, made_by, strict=True) if quotient.dtype is dtype]
        _exchange([quotient for quotient, _ in some], [rank for _, rank in some], ranks)


def _exchange(out: Sequence[Tensor], made_by: Sequence[int], ranks: dist.ProcessGroup) -> None:
    world, me = dist.get_world_size(ranks), dist.get_rank(ranks)
    parts = [[quotient for quotient, rank in zip(out, made_by, strict=True) if rank == r] for r in range(world)]
    longest = max(sum(quotient.numel() for quotient in part) for part in parts)
    mine = out[0].new_zeros(longest)
    if parts[me]:
        flat = torch.cat([quotient.reshape(-1) for quotient in parts[me]])
        mine[: len(flat)] = flat
    everything = mine.new_empty(world * longest)
    all_gather(everything, mine, group=ranks)
    for part, numbers in zip(parts, everything.view(world, longest), strict=True):
        start = 0
        for quotient in part:
            quotient.copy_(numbers[start : start + quotient.numel()].view(quotient.shape))
            start += quotient.numel()
