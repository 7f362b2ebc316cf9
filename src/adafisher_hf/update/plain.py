"""The update, one block at a time and one formula a line: the kernel that the others are tested against.

It waits for the device (``if``), and makes temporaries as it likes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import Batch, Hyper
from .rounding import subtract
from .scalars import Scalars, Scale
from .shards import divide


def advance(batch: Batch, scalars: Scalars, hyper: Hyper) -> tuple[list[Tensor], Tensor]:
    """m ← β m + (1 - β) g, in place where the gradient is finite.

    Returns:
        m/D of every block, and ‖m‖ and ‖m/D‖, (2, blocks), of the rows that are here.
    """
    for i, exp_avg in enumerate(batch.exp_avgs):
        if scalars.finite[i]:
            dtype = scalars.sigma.dtype
            grad = batch.grads[i].to(dtype)
            if not hyper.decoupled:
                grad = grad + hyper.weight_decay * scalars.sigma[i] * batch.params[i].to(dtype)
            exp_avg.copy_(exp_avg.to(dtype).lerp(grad, 1 - hyper.beta))
    momenta = [exp_avg.to(scalars.sigma.dtype) for exp_avg in batch.exp_avgs]
    quotients = [torch.empty_like(momentum) for momentum in momenta]
    divide(batch.directions, batch.exp_avgs, batch.shards, quotients)
    return quotients, torch.stack([_norms(momenta), _norms(quotients)])


def apply(batch: Batch, quotients: list[Tensor], scale: Scale, hyper: Hyper) -> None:
    """θ ← θ - (factor · m/D + α κ θ), in place where the gradient is finite."""
    for i, param in enumerate(batch.params):
        if scale.decay[i]:
            quotient = batch.exp_avgs[i].to(quotients[i].dtype) if scale.unusable[i] else quotients[i]
            update = scale.factor[i] * quotient
            if hyper.decoupled:
                update = update + hyper.lr * hyper.weight_decay * param.to(update.dtype)
            subtract(param, update, batch.compensations[i])


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.norm() for tensor in tensors])
