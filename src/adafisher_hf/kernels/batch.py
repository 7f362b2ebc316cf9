"""What a kernel gets: lists of tensors, one entry a block, and the numbers of their parameter group."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .divisor import Divisor


@dataclass
class Batch:
    """Blocks of one parameter group that share device and state dtype. Every list has one entry a block.

    Where parameters are split over ranks the tensors are this rank's rows, and all scalars are about the whole block.

    Attributes:
        params: the weights, viewed as (stack, rows, cols); updated in place.
        grads: their gradients, same view.
        exp_avgs: momentum, same view, in the state's dtype or in bfloat16; updated in place.
        steps: number of gradients seen, shape (); updated in place.
        sigma_sqs: EMA of mean(g²), shape (); updated in place. Used by the calibrated update only.
        divisors: D of each block.
        compensations: what the rounding of half-precision weights has cut off, same view; None where that is dropped.
        grad_sqs: Σ g² of each block, shape (); a block where it is not finite is left alone.
        sizes: how many numbers each block has.
        quotients: m/D where taking the lengths has made it already, by the index of the block.
        lengths: ‖m‖ and ‖m/D‖ with the momentum m of after the step, (2, blocks); None: the kernel takes them itself.
    """

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    sigma_sqs: list[Tensor] = field(default_factory=list)
    divisors: list[Divisor] = field(default_factory=list)
    compensations: list[Tensor | None] = field(default_factory=list)
    grad_sqs: list[Tensor] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    quotients: dict[int, Tensor] = field(default_factory=dict)
    lengths: Tensor | None = None


@dataclass(frozen=True)
class Hyper:
    """The numbers of a parameter group.

    Attributes:
        decoupled: AdaFisherW's weight decay; otherwise it is added to the gradient.
        calibrated: scale by σ and graft to the momentum's norm; otherwise divide only.
        sigma_floor: smallest σ, shape (): a tensor of pure rounding noise must not be blown up to full size.
    """

    lr: float | Tensor
    beta: float
    beta2: float
    weight_decay: float
    decoupled: bool
    calibrated: bool
    sigma_floor: Tensor


def next_sigma(batch: Batch, hyper: Hyper) -> tuple[Tensor, Tensor]:
    """The EMA of mean(g²) after this step, and σ, its bias-corrected root; nothing is changed. Shape (blocks,)."""
    finite = torch.isfinite(torch.stack(batch.grad_sqs))
    # Divided one by one: a tensor of the sizes would have to be copied to the device, which waits for it.
    mean_sq = torch.stack(torch._foreach_div(batch.grad_sqs, [float(size) for size in batch.sizes]))
    old = torch.stack(batch.sigma_sqs)
    new = torch.where(finite, old.lerp(mean_sq, 1 - hyper.beta2), old)
    steps = torch.stack(batch.steps) + finite
    correction = 1 - hyper.beta2 ** steps.to(new.dtype).clamp(min=1)
    return new, torch.maximum((new / correction).sqrt(), hyper.sigma_floor)


def subtract(param: Tensor, update: Tensor, compensation: Tensor | None) -> None:
    """param ← param - update, in place, by Kahan's summation where there is a compensation; destroys ``update``.

    Args:
        param: in half precision if there is a compensation.
        update: in the state's wide dtype.
        compensation: the part of the exact weight that ``param`` has no digits for; updated in place.
    """
    if compensation is None:
        param.sub_(update)
        return
    resting = update == 0  # rounding once more might move a weight that lies half way between two others
    exact = update.neg_().add_(param).add_(compensation)
    param.copy_(torch.where(resting, param.to(exact.dtype), exact))
    compensation.copy_(exact.sub_(param))
