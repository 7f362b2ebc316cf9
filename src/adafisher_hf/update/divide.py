"""Momentum → direction of the step, of all blocks of a bucket: alone, from gathered rows, or shared out over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ..preconditioners.base import Direction
from .batch import Batch
from .shards import Shard, gather_matrices
from .turns import Turn, exchange, owners

Blocks = list[int]


def divide(
    batch: Batch, momenta: Sequence[Tensor], dtype: torch.dtype, known: Mapping[int, Tensor] | None = None
) -> list[Tensor]:
    """Applies each direction to its momentum; returns what is of this rank's rows.

    Args:
        momenta: one a block.
        dtype: of the quotients.
        known: quotients that are there already, by block.
    """
    known = known or {}
    out = [known[i] if i in known else torch.empty_like(m, dtype=dtype) for i, m in enumerate(momenta)]
    todo = [i for i in range(len(momenta)) if i not in known]
    _apply(batch, momenta, out, [i for i in todo if batch.gathers[i] is None])
    _apply_to_whole(batch, momenta, out, [i for i in todo if isinstance(batch.gathers[i], Shard)])
    _take_turns(batch, momenta, out, [i for i in todo if isinstance(batch.gathers[i], Turn)])
    return out


def _apply(batch: Batch, momenta: Sequence[Tensor], out: Sequence[Tensor], blocks: Blocks) -> None:
    """Those of a kind together: they may work on many matrices at once."""
    kinds: dict[type[Direction], Blocks] = {}
    for i in blocks:
        kinds.setdefault(type(batch.directions[i]), []).append(i)
    for kind, some in kinds.items():
        kind.apply_all([batch.directions[i] for i in some], [momenta[i] for i in some], [out[i] for i in some])


def _apply_to_whole(batch: Batch, momenta: Sequence[Tensor], out: Sequence[Tensor], blocks: Blocks) -> None:
    shards = {i: shard for i in blocks if isinstance(shard := batch.gathers[i], Shard)}
    gathered = gather_matrices([(i, shard, momenta[i]) for i, shard in shards.items()])
    whole = {i: matrices.to(out[i].dtype) for i, matrices in gathered.items()}
    results = {i: torch.empty_like(matrices) for i, matrices in whole.items()}
    _apply(batch, _listed(whole, len(out)), _listed(results, len(out)), blocks)
    for i, shard in shards.items():
        out[i].copy_(shard.mine(results[i]))


def _take_turns(batch: Batch, momenta: Sequence[Tensor], out: Sequence[Tensor], blocks: Blocks) -> None:
    for ranks in dict.fromkeys(turn.ranks for turn in map(batch.gathers.__getitem__, blocks) if isinstance(turn, Turn)):
        some = [i for i in blocks if batch.gathers[i] == Turn(ranks)]
        made_by = owners([out[i] for i in some], dist.get_world_size(ranks))
        me = dist.get_rank(ranks)
        _apply(batch, momenta, out, [i for i, rank in zip(some, made_by, strict=True) if rank == me])
        exchange([out[i] for i in some], made_by, ranks)


def _listed(found: Mapping[int, Tensor], length: int) -> list[Tensor]:
    """By block, as the momenta are; nobody looks at the others."""
    return [found.get(i, torch.empty(0)) for i in range(length)]
