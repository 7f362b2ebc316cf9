"""Momentum → direction of the step, of all blocks of a bucket: alone, from gathered rows, or shared out over ranks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from ..preconditioners.base import Direction, Length
from .batch import Batch
from .shards import Shard, gather_matrices
from .turns import Turn, exchange, owners

Blocks = list[int]


@dataclass
class Divided:
    """m/D of the blocks of a bucket.

    Attributes:
        quotients: of this rank's rows, one a block.
        lengths: of the blocks that have a length of their own; where rows lie on several ranks, of the wanted and the
            found one this rank's share, of which the squares add up.
    """

    quotients: list[Tensor]
    lengths: dict[int, Length] = field(default_factory=dict)


def divide(
    batch: Batch, momenta: Sequence[Tensor], dtype: torch.dtype, known: Mapping[int, Tensor] | None = None
) -> Divided:
    """Applies each direction to its momentum.

    Args:
        momenta: one a block.
        dtype: of the quotients.
        known: quotients that are there already, by block.
    """
    known = known or {}
    out = [known[i] if i in known else torch.empty_like(m, dtype=dtype) for i, m in enumerate(momenta)]
    todo = [i for i in range(len(momenta)) if i not in known]
    divided = Divided(out)
    _apply(batch, momenta, out, batch.params, [i for i in todo if batch.gathers[i] is None], divided)
    _apply_to_whole(batch, momenta, divided, [i for i in todo if isinstance(batch.gathers[i], Shard)])
    _take_turns(batch, momenta, divided, [i for i in todo if isinstance(batch.gathers[i], Turn)])
    return divided


def _apply(
    batch: Batch,
    momenta: Sequence[Tensor],
    out: Sequence[Tensor],
    weights: Sequence[Tensor],
    blocks: Blocks,
    divided: Divided,
) -> None:
    """Those of a kind together: they may work on many matrices at once."""
    kinds: dict[type[Direction], Blocks] = {}
    for i in blocks:
        kinds.setdefault(type(batch.directions[i]), []).append(i)
    for kind, some in kinds.items():
        directions, results = [batch.directions[i] for i in some], [out[i] for i in some]
        weight = [weights[i] for i in some]
        momentum = [momenta[i] for i in some]
        kind.apply_all(directions, momentum, results, weight)
        if kind.own_length:
            found = zip(some, kind.lengths(directions, momentum, results, weight), strict=True)
            divided.lengths.update({i: lengths for i, lengths in found if lengths is not None})


def _apply_to_whole(batch: Batch, momenta: Sequence[Tensor], divided: Divided, blocks: Blocks) -> None:
    out = divided.quotients
    shards = {i: shard for i in blocks if isinstance(shard := batch.gathers[i], Shard)}
    # Whose direction has a length of its own reads the weights, too: they travel in the same message.
    reads = [i for i in blocks if batch.directions[i].own_length]
    parts: list[tuple[Hashable, Shard, Tensor]] = [((i, "m"), shards[i], momenta[i]) for i in blocks]
    gathered = gather_matrices(parts + [((i, "w"), shards[i], batch.params[i]) for i in reads])
    whole = {i: gathered[i, "m"].to(out[i].dtype) for i in blocks}
    results = {i: torch.empty_like(matrices) for i, matrices in whole.items()}
    weights = {i: gathered[i, "w"] for i in reads}
    all_momenta, all_results, all_weights = (_listed(found, len(out)) for found in (whole, results, weights))
    _apply(batch, all_momenta, all_results, all_weights, blocks, divided)
    for i, shard in shards.items():
        out[i].copy_(shard.mine(results[i]))
    for i in divided.lengths.keys() & set(reads):
        share = dist.get_world_size(shards[i].ranks) ** -0.5
        whole_length = divided.lengths[i]
        divided.lengths[i] = Length(whole_length.wanted * share, whole_length.found * share, whole_length.momentum)


def _take_turns(batch: Batch, momenta: Sequence[Tensor], divided: Divided, blocks: Blocks) -> None:
    out = divided.quotients
    for ranks in dict.fromkeys(turn.ranks for turn in map(batch.gathers.__getitem__, blocks) if isinstance(turn, Turn)):
        some = [i for i in blocks if batch.gathers[i] == Turn(ranks)]
        made_by = owners([out[i] for i in some], dist.get_world_size(ranks))
        me = dist.get_rank(ranks)
        mine = [i for i, rank in zip(some, made_by, strict=True) if rank == me]
        _apply(batch, momenta, out, batch.params, mine, divided)
        exchange([out[i] for i in some], made_by, ranks)


def _listed(found: Mapping[int, Tensor], length: int) -> list[Tensor]:
    """By block, as the momenta are; nobody looks at the others."""
    return [found.get(i, torch.empty(0)) for i in range(length)]
