"""From parameters that have a gradient to the batches that a kernel takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from ..ranks import is_sharded
from ..statistics.block import Block
from .batch import Batch, Key
from .directions import Directions


class Place(NamedTuple):
    """Where the numbers of a parameter are among those of its batch."""

    block: Block
    key: Key
    blocks: slice


@dataclass
class Collected:
    """All parameters of a step.

    Attributes:
        batches: by what their blocks have in common.
        places: one a parameter.
        copies: weights that are not contiguous, and the copy that the kernel updates.
    """

    batches: dict[Key, Batch] = field(default_factory=lambda: defaultdict(Batch))
    places: list[Place] = field(default_factory=list)
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def write_back(self) -> None:
        """Copies what was updated in a copy."""
        for param, copy in self.copies:
            param.copy_(copy.view(param.shape))


def collect(
    groups: Iterable[dict[str, Any]],
    blocks: Mapping[int, Block],
    states: Mapping[Tensor, dict[str, Tensor]],
    directions: Directions,
    copies: dist.ProcessGroup | None = None,
) -> Collected:
    """The batches of all parameters that have a gradient, group by group.

    Args:
        groups: of the optimizer.
        blocks: by ``id`` of their parameter.
        states: by parameter.
        copies: ranks that hold the same parameters and take the same step, to share work out; None: none do.
    """
    collected = Collected()
    for index, group in enumerate(groups):
        for param in _partners_together(group["params"], blocks):
            if param.grad is None or not param.numel():
                continue
            block, state = blocks[id(param)], states[param]
            shard, parts = directions.parts(block, state, group["damping"])
            key = Key(index, param.device, state["step"].dtype, shard.ranks)
            batch = collected.batches[key]
            start = len(batch.params)
            weights = batch.add(param, state, shard, parts, copies)
            collected.places.append(Place(block, key, slice(start, len(batch.params))))
            if not is_sharded(param) and not param.is_contiguous():
                collected.copies.append((param, weights))
    return collected


def _partners_together(params: list[Tensor], blocks: Mapping[int, Block]) -> list[Tensor]:
    """The factors of each adapter one after the other, A first; all else in its order."""
    if all(blocks[id(param)].partner is None for param in params):
        return params
    places = {id(blocks[id(param)]): i for i, param in enumerate(params)}

    def place(i: int) -> tuple[int, int]:
        block = blocks[id(params[i])]
        first = places.get(id(block.partner), i) if block.side == "b" else i
        return first, int(block.side == "b")

    return [params[i] for i in sorted(range(len(params)), key=place)]
