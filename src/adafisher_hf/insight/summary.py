"""Curvature and update size of a running optimizer, by parameter and by kind of layer: numbers for logs and reports."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..preconditioners.base import Direction
from ..ranks import whole
from ..statistics.block import Block
from ..update.directions import Directions

SAMPLE = 64  # rows and columns of a parameter that the spread is taken from


class ParameterSummary(NamedTuple):
    """One parameter.

    Attributes:
        mean: mean(F) of the last refresh; in calibrated mode before it is normalised, so it carries the loss's scale,
            and nan until the first refresh after a resume: it is for logs only and no part of the state.
        log_spread: standard deviation of log10 of the divisor over the parameter's entries.
        update: norm of the last update without weight decay, ‖α u‖.
        weight: norm of the parameter.
    """

    name: str
    kind: str
    mean: float
    log_spread: float
    update: float
    weight: float


class Observed(NamedTuple):
    """What an optimizer knows of one parameter, on the device.

    Attributes:
        name: of the parameter.
        kind: of its layer.
        parameter: itself.
        direction: of its next step.
        trace_mean: raw mean(F) of its blocks at the last refresh; None: not known.
        lengths: ‖α u‖ of its blocks in the last step; None: it has taken none since the optimizer was made or loaded.
    """

    name: str
    kind: str
    parameter: Tensor
    direction: Direction
    trace_mean: Tensor | None
    lengths: Tensor | None


def observe(
    params: Iterable[tuple[dict[str, Any], Tensor]],
    blocks: Mapping[int, Block],
    states: Mapping[Tensor, dict[str, Tensor]],
    directions: Directions,
    trace_means: Mapping[int, Tensor | None] | None,
    lengths: Mapping[int, tuple[Tensor, slice]],
) -> Iterator[Observed]:
    """What is known of every parameter that has a state.

    Args:
        params: with their groups.
        blocks: by ``id`` of their parameter.
        states: by parameter.
        trace_means: mean(F) by ``id`` of the block; None: the divisor says it.
        lengths: ‖α u‖ of batches, and where the block's are, by ``id`` of the block.
    """
    for group, param in params:
        block, state = blocks[id(param)], states.get(param)
        if state:
            direction = directions.whole(block, state, group["damping"])
            mean = direction.dense() if trace_means is None else trace_means.get(id(block))
            found, own = lengths.get(id(block), (None, slice(0)))
            yield Observed(block.name, block.kind, param, direction, mean, None if found is None else found[own])


@torch.no_grad()
def by_parameter(observed: Iterable[Observed]) -> list[ParameterSummary]:
    """One row for every parameter. Waits for the device once."""
    observed = list(observed)
    table = _on_host([_numbers(one) for one in observed])
    return [ParameterSummary(one.name, one.kind, *numbers) for one, numbers in zip(observed, table, strict=True)]


def summarize_rows(
    rows: Iterable[ParameterSummary], figures: Mapping[str, dict[str, float]] | None = None
) -> dict[str, dict[str, float]]:
    """By kind of layer: ``mean`` and ``log_spread`` averaged over its parameters, and ``update_ratio`` ‖αu‖/‖θ‖.

    A mean that is not known of any parameter is left out.

    Args:
        rows: of ``by_parameter``.
        figures: what the preconditioner has to say beside them.
    """
    kinds: dict[str, list[ParameterSummary]] = defaultdict(list)
    for row in rows:
        kinds[row.kind].append(row)
    return {**{kind: _summarize_kind(rows) for kind, rows in kinds.items()}, **(figures or {})}


def _summarize_kind(rows: list[ParameterSummary]) -> dict[str, float]:
    weight = math.hypot(*(row.weight for row in rows))
    means = [row.mean for row in rows if not math.isnan(row.mean)]
    return {
        **({"mean": sum(means) / len(means)} if means else {}),
        "log_spread": sum(row.log_spread for row in rows) / len(rows),
        "update_ratio": math.hypot(*(row.update for row in rows)) / weight if weight else 0.0,
    }


def _numbers(one: Observed) -> Tensor:
    sample = one.direction.sample(SAMPLE)
    spread = sample.clamp(min=torch.finfo(sample.dtype).tiny).log10().std(correction=0)
    mean = sample.new_full((), math.nan) if one.trace_mean is None else one.trace_mean.mean()
    update = sample.new_zeros(()) if one.lengths is None else one.lengths.norm()
    weight = whole(one.parameter.norm())
    return torch.stack([number.detach().reshape(()).to(sample) for number in (mean, spread, update, weight)])


def _on_host(values: list[Tensor]) -> list[list[float]]:
    """The values of all parameters in one transfer from the device."""
    return torch.stack([value.to(values[0].device, torch.float64) for value in values]).tolist() if values else []
