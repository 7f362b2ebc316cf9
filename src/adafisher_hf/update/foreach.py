"""The same update with torch's foreach operations: no wait for the device, one temporary of a bucket's size."""

from __future__ import annotations

import torch
from torch import Tensor

from ..compat import foreach_lerp, foreach_mul, foreach_norm, foreach_sub
from .batch import Batch, Hyper
from .rounding import subtract
from .scalars import Scalars, Scale
from .shards import divide


def advance(batch: Batch, scalars: Scalars, hyper: Hyper) -> tuple[list[Tensor], Tensor]:
    """See ``plain.advance``."""
    dtype = scalars.sigma.dtype
    # The one temporary: gradient, then D, then m/D. Where the gradient is not finite it is the momentum itself, which
    # leaves the momentum as it was.
    triples = zip(scalars.finite.unbind(), batch.grads, batch.exp_avgs, strict=True)
    work = [torch.where(ok, grad, exp_avg).to(dtype) for ok, grad, exp_avg in triples]
    if hyper.weight_decay and not hyper.decoupled:
        _add_scaled(work, batch.params, torch.where(scalars.finite, hyper.weight_decay * scalars.sigma, 0.0))
    _average(batch.exp_avgs, work, hyper.beta)
    divide(batch.directions, batch.exp_avgs, batch.shards, work)
    return work, torch.stack([_norms(batch.exp_avgs, dtype), _norms(work, dtype)])


def apply(batch: Batch, quotients: list[Tensor], scale: Scale, hyper: Hyper) -> None:
    """See ``plain.apply``; ``quotients`` are lost."""
    for bad, exp_avg, quotient in zip(scale.unusable.unbind(), batch.exp_avgs, quotients, strict=True):
        torch.where(bad, exp_avg.to(quotient.dtype), quotient, out=quotient)
    foreach_mul(quotients, list(scale.factor.to(quotients[0].dtype).unbind()))
    if hyper.weight_decay and hyper.decoupled:
        _add_scaled(quotients, batch.params, scale.decay * hyper.weight_decay * hyper.lr)
    if all(compensation is None for compensation in batch.compensations):
        foreach_sub(batch.params, quotients)
        return
    for param, update, compensation in zip(batch.params, quotients, batch.compensations, strict=True):
        subtract(param, update, compensation)


def _average(exp_avgs: list[Tensor], work: list[Tensor], beta: float) -> None:
    if exp_avgs[0].dtype == work[0].dtype:
        foreach_lerp(exp_avgs, work, 1 - beta)
    else:  # averaged in work's precision, and rounded once
        for exp_avg, new in zip(exp_avgs, work, strict=True):
            exp_avg.copy_(new.mul_(1 - beta).add_(exp_avg, alpha=beta))


def _add_scaled(work: list[Tensor], params: list[Tensor], scales: Tensor) -> None:
    for out, param, scale in zip(work, params, scales.unbind(), strict=True):
        out.addcmul_(param.to(out.dtype), scale.to(out.dtype))


def _norms(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.stack(foreach_norm(tensors, 2, dtype))
