"""The same update with torch's foreach operations: no wait for the device, few temporaries of a bucket's size."""

from __future__ import annotations

import torch
from torch import Tensor

from ..compat import foreach_lerp, foreach_lerped, foreach_mul, foreach_sub
from .batch import Batch, Hyper
from .rounding import subtract
from .scalars import Scalars, Scale, surely


def advance(batch: Batch, scalars: Scalars, hyper: Hyper) -> None:
    """See ``plain.advance``."""
    _average(batch.exp_avgs, _gradients(batch, scalars, hyper), hyper.beta)


def ahead(batch: Batch, scalars: Scalars, hyper: Hyper) -> list[Tensor]:
    """See ``plain.ahead``."""
    momenta = [exp_avg.to(scalars.sigma.dtype) for exp_avg in batch.exp_avgs]
    return list(foreach_lerped(_gradients(batch, scalars, hyper), momenta, hyper.beta))


def apply(batch: Batch, momenta: list[Tensor], quotients: list[Tensor], scale: Scale, hyper: Hyper) -> None:
    """See ``plain.apply``; ``quotients`` are lost."""
    if not surely(~scale.unusable):
        for bad, momentum, quotient in zip(scale.unusable.unbind(), momenta, quotients, strict=True):
            torch.where(bad, momentum.to(quotient.dtype), quotient, out=quotient)
    foreach_mul(quotients, list(scale.factor.to(quotients[0].dtype).unbind()))
    if hyper.weight_decay and hyper.decoupled:
        _add_scaled(quotients, batch.params, scale.taken * hyper.weight_decay * scale.lr)
    if all(compensation is None for compensation in batch.compensations):
        foreach_sub(batch.params, quotients)
        return
    for param, update, compensation in zip(batch.params, quotients, batch.compensations, strict=True):
        subtract(param, update, compensation)


def _gradients(batch: Batch, scalars: Scalars, hyper: Hyper) -> list[Tensor]:
    """g with the coupled weight decay; where it is not finite the momentum itself, which then stays as it was.

    They may be the gradients themselves: nobody writes into them.
    """
    dtype = scalars.sigma.dtype
    if surely(scalars.finite):
        found = [grad.to(dtype) for grad in batch.grads]
    else:
        triples = zip(scalars.finite.unbind(), batch.grads, batch.exp_avgs, strict=True)
        found = [torch.where(ok, grad, exp_avg).to(dtype) for ok, grad, exp_avg in triples]
    if hyper.weight_decay and not hyper.decoupled:
        decay = torch.where(scalars.finite, hyper.weight_decay * scalars.sigma, 0.0)
        found = [grad.addcmul(param.to(dtype), by) for grad, param, by in zip(found, batch.params, decay, strict=True)]
    return found


def _average(exp_avgs: list[Tensor], new: list[Tensor], beta: float) -> None:
    if exp_avgs[0].dtype == new[0].dtype:
        foreach_lerp(exp_avgs, new, 1 - beta)
    else:  # averaged in the precision of the new, and rounded once
        for exp_avg, gradient in zip(exp_avgs, new, strict=True):
            exp_avg.copy_((gradient * (1 - beta)).add_(exp_avg, alpha=beta))


def _add_scaled(out: list[Tensor], params: list[Tensor], scales: Tensor) -> None:
    for sum_, param, scale in zip(out, params, scales.unbind(), strict=True):
        sum_.addcmul_(param.to(sum_.dtype), scale.to(sum_.dtype))
