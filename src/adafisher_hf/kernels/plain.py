"""The update, one block at a time and one formula a line: the kernel that the others are tested against.

It waits for the device (``if``), and makes temporaries as it likes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import Batch, Hyper, subtract


def update(batch: Batch, hyper: Hyper) -> None:
    """Takes one step of every block of the batch, in place (algorithm: θ ← θ - α(u + κθ))."""
    for i in range(len(batch.params)):
        if torch.isfinite(batch.grad_sqs[i]):
            _update(batch, i, hyper)


def _update(batch: Batch, i: int, hyper: Hyper) -> None:
    param, exp_avg, step = batch.params[i], batch.exp_avgs[i], batch.steps[i]
    theta, grad = param.to(step.dtype), batch.grads[i].to(step.dtype)
    step += 1
    batch.divisors[i].observe(grad, batch.grad_sqs[i])
    sigma = _sigma(batch, i, hyper) if hyper.calibrated else torch.ones_like(step)
    if not hyper.decoupled:
        grad = grad + hyper.weight_decay * sigma * theta
    exp_avg.copy_(exp_avg.to(step.dtype).lerp(grad, 1 - hyper.beta))
    momentum = exp_avg.to(step.dtype)
    update = batch.quotients[i] if i in batch.quotients else batch.divisors[i].divide(momentum)
    if hyper.calibrated:
        update = update * _graft(batch, i, momentum, update) / torch.where(sigma > 0, sigma, 1.0)
    update = update / (1 - hyper.beta ** step.item())
    if hyper.decoupled:
        update = update + hyper.weight_decay * theta
    subtract(param, hyper.lr * update, batch.compensations[i])


def _sigma(batch: Batch, i: int, hyper: Hyper) -> Tensor:
    sigma_sq = batch.sigma_sqs[i]
    sigma_sq.lerp_(batch.grad_sqs[i] / batch.sizes[i], 1 - hyper.beta2)
    corrected = sigma_sq / (1 - hyper.beta2 ** batch.steps[i].item())
    return torch.maximum(corrected.sqrt(), hyper.sigma_floor)


def _graft(batch: Batch, i: int, momentum: Tensor, quotient: Tensor) -> Tensor:
    """‖m‖ / ‖m/D‖: the curvature decides the direction, the momentum the length."""
    if batch.lengths is not None:
        before, after = batch.lengths[:, i]
    else:
        before, after = momentum.norm(), quotient.norm()
    return before / after if after > 0 else torch.zeros_like(after)
