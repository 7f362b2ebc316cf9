"""The update, one block at a time and one formula a line: the kernel that the others are tested against.

It waits for the device (``if``), and makes temporaries as it likes.
"""

from __future__ import annotations

from torch import Tensor

from .batch import Batch, Hyper
from .rounding import subtract
from .scalars import Scalars, Scale


def advance(batch: Batch, scalars: Scalars, hyper: Hyper) -> None:
    """m ← β m + (1 - β) g, in place where the gradient is finite."""
    for i, exp_avg in enumerate(batch.exp_avgs):
        if scalars.finite[i]:
            grad = _gradient(batch, scalars, hyper, i)
            exp_avg.copy_(exp_avg.to(grad.dtype).lerp(grad, 1 - hyper.beta))


def ahead(batch: Batch, scalars: Scalars, hyper: Hyper) -> list[Tensor]:
    """β m + (1 - β) g of every block: the momentum as the next step would see it, were g to come again (Nesterov)."""
    found = []
    for i, exp_avg in enumerate(batch.exp_avgs):
        momentum = exp_avg.to(scalars.sigma.dtype)
        if scalars.finite[i]:
            momentum = _gradient(batch, scalars, hyper, i).lerp(momentum, hyper.beta)
        found.append(momentum)
    return found


def apply(batch: Batch, momenta: list[Tensor], quotients: list[Tensor], scale: Scale, hyper: Hyper) -> None:
    """θ ← θ - (factor · m/D + α κ θ), in place where the gradient is finite.

    Args:
        momenta: m, or what ``ahead`` made of it.
        quotients: m/D.
    """
    for i, param in enumerate(batch.params):
        if scale.taken[i]:
            quotient = momenta[i].to(quotients[i].dtype) if scale.unusable[i] else quotients[i]
            update = scale.factor[i] * quotient
            if hyper.decoupled:
                update = update + scale.lr[i] * hyper.weight_decay * param.to(update.dtype)
            subtract(param, update, batch.compensations[i])


def _gradient(batch: Batch, scalars: Scalars, hyper: Hyper, i: int) -> Tensor:
    """g, with the coupled weight decay κ σ θ."""
    grad = batch.grads[i].to(scalars.sigma.dtype)
    if hyper.decoupled:
        return grad
    return grad + hyper.weight_decay * scalars.sigma[i] * batch.params[i].to(grad.dtype)
