"""The same update with torch's foreach operations: no wait for the device, one full-size temporary a bucket.

Per-block scalars (σ, norms, bias corrections) are stacked into vectors, so that their arithmetic is a handful of
operations however many blocks there are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .batch import Batch, Hyper, next_sigma, subtract

BUCKET_NUMBERS = 1 << 22  # numbers a bucket: bounds the temporary memory (one larger tensor is a bucket of its own)


def update(batch: Batch, hyper: Hyper) -> None:
    """Takes one step of every block of the batch, in place; see ``plain.update`` for the formulas."""
    grad_sq = torch.stack(batch.grad_sqs)
    finite = torch.isfinite(grad_sq)
    sigma = _advance_sigma(batch, hyper) if hyper.calibrated else torch.ones_like(grad_sq)
    steps = torch.stack(batch.steps) + finite
    torch._foreach_copy_(batch.steps, list(steps.unbind()))
    correction = 1 - hyper.beta ** steps.clamp(min=1)
    for divisor, grad, squares in zip(batch.divisors, batch.grads, batch.grad_sqs, strict=True):
        divisor.observe(grad, squares)
    for bucket in _buckets(batch.params):
        _update_bucket(batch, bucket, hyper, sigma[bucket], correction[bucket], finite[bucket])


def _update_bucket(
    batch: Batch, bucket: slice, hyper: Hyper, sigma: Tensor, correction: Tensor, finite: Tensor
) -> None:
    params, exp_avgs = batch.params[bucket], batch.exp_avgs[bucket]
    taken = finite.to(correction.dtype)
    decay = taken * hyper.weight_decay
    # The one temporary: gradient, then divisor, then update. Where the gradient is not finite it is the momentum
    # itself, which leaves the momentum as it was.
    triples = zip(finite.unbind(), batch.grads[bucket], exp_avgs, strict=True)
    work = [torch.where(ok, grad, exp_avg).to(correction.dtype) for ok, grad, exp_avg in triples]
    if hyper.weight_decay and not hyper.decoupled:
        _add_scaled(work, params, decay * sigma)
    _average(exp_avgs, work, hyper.beta)
    for i, out in zip(range(len(batch.params))[bucket], work, strict=True):
        _divide(batch, i, out)
    scale = taken * hyper.lr / correction
    if hyper.calibrated:
        before, after = _lengths(batch, bucket, work, sigma.dtype)
        scale = scale * _finite_or_zero(before / (after * sigma))
    torch._foreach_mul_(work, list(scale.to(work[0].dtype).unbind()))
    if hyper.weight_decay and hyper.decoupled:
        _add_scaled(work, params, decay * hyper.lr)
    compensations = batch.compensations[bucket]
    if all(compensation is None for compensation in compensations):
        torch._foreach_sub_(params, work)
    else:
        for param, update, compensation in zip(params, work, compensations, strict=True):
            subtract(param, update, compensation)


def _divide(batch: Batch, i: int, out: Tensor) -> None:
    if i not in batch.quotients:
        batch.divisors[i].divide(batch.exp_avgs[i], out=out)
    else:  # made before it was known whether the gradient is finite on all ranks
        out.copy_(torch.where(torch.isfinite(batch.grad_sqs[i]), batch.quotients[i], 0.0))


def _average(exp_avgs: list[Tensor], work: list[Tensor], beta: float) -> None:
    if exp_avgs[0].dtype == work[0].dtype:
        torch._foreach_lerp_(exp_avgs, work, 1 - beta)
    else:  # averaged in work's precision, and rounded once
        for exp_avg, new in zip(exp_avgs, work, strict=True):
            exp_avg.copy_(new.mul_(1 - beta).add_(exp_avg, alpha=beta))


def _advance_sigma(batch: Batch, hyper: Hyper) -> Tensor:
    sigma_sqs, sigma = next_sigma(batch, hyper)
    torch._foreach_copy_(batch.sigma_sqs, list(sigma_sqs.unbind()))
    return sigma


def _lengths(batch: Batch, bucket: slice, quotients: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """‖m‖ and ‖m/D‖ of the blocks of a bucket."""
    if batch.lengths is not None:
        return batch.lengths[0][bucket], batch.lengths[1][bucket]
    return _norms(batch.exp_avgs[bucket], dtype), _norms(quotients, dtype)


def _add_scaled(work: list[Tensor], params: list[Tensor], scales: Tensor) -> None:
    for out, param, scale in zip(work, params, scales.unbind(), strict=True):
        out.addcmul_(param.to(out.dtype), scale.to(out.dtype))


def _norms(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors, 2, dtype))


def _finite_or_zero(x: Tensor) -> Tensor:
    # 0 / 0: no gradient yet, or an update that vanishes.
    return torch.where(torch.isfinite(x), x, 0.0)


def _buckets(params: list[Tensor]) -> Iterator[slice]:
    start, numbers = 0, 0
    for i, param in enumerate(params):
        if i > start and numbers + param.numel() > BUCKET_NUMBERS:
            yield slice(start, i)
            start, numbers = i, 0
        numbers += param.numel()
    if params:
        yield slice(start, len(params))
