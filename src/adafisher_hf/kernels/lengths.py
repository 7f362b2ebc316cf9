"""How long momentum and update will be, before either is changed: several ranks have to add up what each holds."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import Batch, Hyper, next_sigma


def squared_lengths(batch: Batch, hyper: Hyper) -> Tensor:
    """Σ m² and Σ (m/D)² over the rows that are here, m the momentum of after the step. Shape (2, blocks).

    With coupled weight decay ``batch.grad_sqs`` must be complete, as σ is made from them. Quotients that other ranks
    had to be asked for are kept in the batch.
    """
    coupled = bool(hyper.weight_decay) and not hyper.decoupled
    decays = (hyper.weight_decay * next_sigma(batch, hyper)[1]).unbind() if coupled else ()
    momenta, quotients = [], []
    for i, exp_avg in enumerate(batch.exp_avgs):
        dtype = batch.steps[i].dtype
        new = batch.grads[i].to(dtype)
        if coupled:
            new = new + decays[i] * batch.params[i].to(dtype)
        momentum = exp_avg.to(dtype).lerp(new, 1 - hyper.beta).to(exp_avg.dtype)
        momenta.append(_squared(momentum, dtype))
        quotient = batch.divisors[i].divide(momentum)
        quotients.append(_squared(quotient, dtype))
        if batch.divisors[i].gathers:
            batch.quotients[i] = quotient
    return torch.stack([torch.stack(momenta), torch.stack(quotients)])


def _squared(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=dtype).square()
