"""Curvature and update size of a running optimizer, by parameter and by kind of layer: numbers for logs and reports."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .kernels import Divisor
from .sharding import whole

if TYPE_CHECKING:
    from .optimizer import AdaFisher

SAMPLE = 64  # rows and columns of a block that the spread is taken from


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


@torch.no_grad()
def by_parameter(optimizer: AdaFisher) -> list[ParameterSummary]:
    """One row for every parameter that has taken a step. Waits for the device once."""
    rows, values = [], []
    blocks, calibrated = optimizer._by_parameter(), optimizer.config.mode == "calibrated"
    for group, lr in zip(optimizer.param_groups, optimizer._last_lrs, strict=False):
        for param in group["params"]:
            state = optimizer.state.get(param)
            if state:
                block = blocks[id(param)]
                divisor = optimizer._divisor(param, block, group["damping"])
                mean = _mean(block.raw_mean, divisor, calibrated)
                update = lr * _update_norm(optimizer, group, state, divisor, block.layouts[0].shape)
                numbers = (mean, _log_spread(divisor), update, whole(param.norm()))
                values.append(torch.stack([number.reshape(()).to(divisor.rows) for number in numbers]))
                rows.append((block.name, block.kind))
    table = _on_host(values)
    return [ParameterSummary(*names, *numbers) for names, numbers in zip(rows, table, strict=True)]


def summarize(optimizer: AdaFisher) -> dict[str, dict[str, float]]:
    """By kind of layer: ``mean`` and ``log_spread`` averaged over its parameters, and ``update_ratio`` ‖αu‖/‖θ‖.

    A mean that is not known of any parameter is left out. With the kronecker structure also how many
    eigendecompositions failed and kept their old basis.
    """
    return summarize_rows(optimizer, by_parameter(optimizer))


def summarize_rows(optimizer: AdaFisher, rows: Iterable[ParameterSummary]) -> dict[str, dict[str, float]]:
    """The same from the rows of ``by_parameter``."""
    kinds: dict[str, list[ParameterSummary]] = defaultdict(list)
    for row in rows:
        kinds[row.kind].append(row)
    summary = {kind: _summarize_kind(rows) for kind, rows in kinds.items()}
    if optimizer.config.structure == "kronecker":
        summary["kronecker"] = {"failed_bases": float(optimizer._mode.failures)}
    return summary


def _summarize_kind(rows: list[ParameterSummary]) -> dict[str, float]:
    weight = math.hypot(*(row.weight for row in rows))
    means = [row.mean for row in rows if not math.isnan(row.mean)]
    return {
        **({"mean": sum(means) / len(means)} if means else {}),
        "log_spread": sum(row.log_spread for row in rows) / len(rows),
        "update_ratio": math.hypot(*(row.update for row in rows)) / weight if weight else 0.0,
    }


def _mean(raw_mean: Tensor | None, divisor: Divisor, calibrated: bool) -> Tensor:
    if raw_mean is not None:
        return raw_mean.mean()
    return divisor.rows.new_full((), math.nan) if calibrated else divisor.dense().mean()


def _on_host(values: list[Tensor]) -> list[list[float]]:
    """The values of all parameters in one transfer from the device."""
    return torch.stack([value.to(values[0].device, torch.float64) for value in values]).tolist() if values else []


def _update_norm(
    optimizer: AdaFisher, group: dict[str, Any], state: dict[str, Tensor], divisor: Divisor, shape: tuple[int, ...]
) -> Tensor:
    momentum = state["exp_avg"]
    if optimizer.config.mode != "calibrated":
        steps, momentum = state["step"].clamp(min=1), whole(momentum).view(shape)
        return (divisor.divide(momentum) / (1 - group["beta"] ** steps)).norm()
    # Grafted: the update is as long as the momentum in units of σ, whatever the curvature.
    steps = state["step"].clamp(min=1)
    sigma = (state["sigma_sq"] / (1 - group["beta2"] ** steps)).sqrt()
    length = whole(momentum.flatten(1).norm(dim=1) if len(steps) > 1 else momentum.norm()).reshape(-1)
    lengths = length / ((1 - group["beta"] ** steps) * sigma)
    return torch.where(sigma > 0, lengths, 0.0).norm()


def _log_spread(divisor: Divisor) -> Tensor:
    rows, cols = (slice(None, None, max(1, side.shape[-1] // SAMPLE)) for side in (divisor.rows, divisor.cols))
    second_moment = None if divisor.second_moment is None else divisor.second_moment[:, rows, cols]
    sample = Divisor(divisor.rows[..., rows], divisor.cols[..., cols], divisor.damping, second_moment=second_moment)
    dense = sample.dense()
    return dense.clamp(min=torch.finfo(dense.dtype).tiny).log10().std(correction=0)
