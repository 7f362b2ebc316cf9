"""Which parameter gets which kind of curvature, told before training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from ..config.adafisher import AdaFisherConfig
from ..layers.fused import looks_fused
from ..preconditioners import find
from ..preconditioners.base import Preconditioner
from ..statistics.block import Block
from ..statistics.model import ModelStatistics


class CoverageRow(NamedTuple):
    """One trainable parameter.

    Attributes:
        name: in the model.
        shape: of the parameter.
        kind: of its curvature; ``gradient`` is the gradient-factored fallback.
        owners: the modules that hold it.
        role: what it is for: ``hidden``, ``vocabulary`` (which has a learning rate of its own), ``router``,
            ``adapter``, ``vector``, ``other``, ``excluded``.
        treatment: what the structure does with it.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    owners: tuple[str, ...]
    role: str
    treatment: str


class KindShare(NamedTuple):
    """One kind of block over a whole model: how many parameters, how many numbers, which share of all numbers."""

    kind: str
    parameters: int
    numbers: int
    share: float


def coverage(model: nn.Module, config: AdaFisherConfig | None = None) -> list[CoverageRow]:
    """One row for each trainable parameter of the model, tied ones once; the model may be on the meta device.

    A module with a kind whose forward pass never runs still falls back to its gradient: except for peft's adapters of
    single parameters, that is only seen in training.

    Args:
        model: stays as it is.
        config: whose treatment is shown; None: the defaults.

    Raises:
        ValueError: an option of the config does not fit the model.
    """
    config = (config or AdaFisherConfig()).resolved()
    preconditioner = find(config.mode, config.structure).load().from_config(config)
    statistics = ModelStatistics(model, preconditioner.wanted(), excluded=config.excluded())
    try:
        statistics.add(parameter for parameter in model.parameters() if parameter.requires_grad)
        return coverage_of_blocks(model, statistics, preconditioner, config.takes_pairs)
    finally:
        statistics.close()


def coverage_of_blocks(
    model: nn.Module | None, blocks: Iterable[Block], preconditioner: Preconditioner, takes_pairs: bool
) -> list[CoverageRow]:
    """The same for the parameters that an optimizer holds, in the order of the model.

    Args:
        takes_pairs: the factors of an adapter take one step.
    """
    names = [] if model is None else [name for name, _ in model.named_parameters()]
    order = {name: i for i, name in enumerate(names)}
    return [
        _row(block, preconditioner, takes_pairs)
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


def _row(block: Block, preconditioner: Preconditioner, takes_pairs: bool) -> CoverageRow:
    treatment = preconditioner.treatment(block.layouts[0]) if preconditioner.measures(block) else "momentum alone"
    if block.layouts[0].fused is None and any(looks_fused(o.module_name, o.attribute) for o in block.owners):
        treatment += " as one matrix" if block.role == "hidden" else ""
    if takes_pairs and block.partner is not None:
        treatment = f"one step with {block.partner.name}"
    owners = tuple(owner.module_name for owner in block.owners)
    return CoverageRow(block.name, tuple(block.parameter.shape), block.kind, owners, block.role, treatment)
