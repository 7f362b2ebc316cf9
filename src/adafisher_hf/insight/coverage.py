"""Which parameter gets which kind of curvature, told before training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from ..statistics.model import Block
from ..statistics.owners import Owner, find_owners, kind_of


class CoverageRow(NamedTuple):
    """One trainable parameter: its kind of block (``gradient``: the gradient-factored fallback) and its owners."""

    name: str
    shape: tuple[int, ...]
    kind: str
    owners: tuple[str, ...]


class KindShare(NamedTuple):
    """One kind of block over a whole model: how many parameters, how many numbers, which share of all numbers."""

    kind: str
    parameters: int
    numbers: int
    share: float


def coverage(model: nn.Module) -> list[CoverageRow]:
    """One row for each trainable parameter of the model, tied ones once; the model may be on the meta device.

    A module with a kind whose forward pass never runs still falls back to its gradient: except for peft's adapters of
    single parameters, that is only seen in training.
    """
    owners = find_owners(model)
    return [
        _row(name, parameter.shape, owners[id(parameter)])
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]


def coverage_of_blocks(model: nn.Module | None, blocks: Iterable[Block]) -> list[CoverageRow]:
    """The same for the parameters that an optimizer holds, in the order of the model."""
    names = [] if model is None else [name for name, _ in model.named_parameters()]
    order = {name: i for i, name in enumerate(names)}
    return [
        _row(block.name, block.parameter.shape, block.owners)
        for block in sorted(blocks, key=lambda block: order.get(block.name, len(order)))
    ]


def summarize(rows: Iterable[CoverageRow]) -> list[KindShare]:
    """The rows added up by kind, the largest share first."""
    numbers: dict[str, list[int]] = {}
    for row in rows:
        count = 1
        for length in row.shape:
            count *= length
        numbers.setdefault(row.kind, []).append(count)
    total = max(1, sum(map(sum, numbers.values())))
    shares = [KindShare(kind, len(counts), sum(counts), sum(counts) / total) for kind, counts in numbers.items()]
    return sorted(shares, key=lambda share: -share.numbers)


def _row(name: str, shape: Iterable[int], owners: list[Owner]) -> CoverageRow:
    return CoverageRow(name, tuple(shape), kind_of(owners), tuple(owner.module_name for owner in owners))
