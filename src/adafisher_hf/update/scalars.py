"""Everything of a step that is one number a block: whether its gradient is finite, σ, corrections, scale and length."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..compat import foreach_copy, foreach_div
from .batch import Batch, Hyper

SIGMA_FLOOR = 1e-7  # σ is at least this multiple of the RMS of all gradients of a step


@dataclass(frozen=True)
class Scalars:
    """What is known of every block before its momentum moves; shape (blocks,).

    Attributes:
        finite: whether the block takes this step.
        sigma: σ, the gradient's RMS: the bias-corrected root of the EMA of mean(g²); 1 where nothing is grafted.
        correction: 1 - βⁿ of the momentum; one power more where it is Nesterov's, which looks a step ahead.
        lr: α, with the block's own multiple.
    """

    finite: Tensor
    sigma: Tensor
    correction: Tensor
    lr: Tensor

    def __getitem__(self, bucket: slice) -> Scalars:
        return Scalars(self.finite[bucket], self.sigma[bucket], self.correction[bucket], self.lr[bucket])


@dataclass(frozen=True)
class Scale:
    """How the quotient m/D becomes the update; shape (blocks,).

    Attributes:
        factor: α times what corrects and grafts it; 0 where the block takes no step.
        taken: 1, or 0 where the block takes no step and its weight does not decay either.
        lr: α of the block.
        unusable: m/D is not finite: m itself takes its place, as if D were 1.
        length: ‖α u‖, of the update without weight decay.
    """

    factor: Tensor
    taken: Tensor
    lr: Tensor
    unusable: Tensor
    length: Tensor

    def __getitem__(self, bucket: slice) -> Scale:
        return Scale(**{field.name: getattr(self, field.name)[bucket] for field in dataclasses.fields(self)})


def begin(batch: Batch, hyper: Hyper, floor: Tensor) -> Scalars:
    """Counts the step and takes mean(g²) into σ², in place, where the gradient is finite.

    Args:
        floor: the smallest σ, shape (): a tensor of pure rounding noise must not be blown up to full size.
    """
    grad_sq = torch.stack(batch.grad_sqs)
    finite = torch.isfinite(grad_sq)
    steps = torch.stack(batch.steps) + finite
    foreach_copy(batch.steps, list(steps.unbind()))
    seen = steps.clamp(min=1)
    sigma = _advance_sigma(batch, hyper, finite, seen, floor) if hyper.grafted else torch.ones_like(grad_sq)
    lr = hyper.lr * torch.stack(batch.lr_multiples)
    return Scalars(finite, sigma, 1 - hyper.beta ** (seen + hyper.nesterov), lr)


def finish(scalars: Scalars, hyper: Hyper, norms: Tensor) -> Scale:
    """The scale of every block's update: the curvature decides its direction, the momentum its length.

    Norm grafting as in Shampoo (Agarwal et al. 2020; Anil et al. 2020): ‖u‖ = ‖m̂‖/σ.

    Args:
        norms: ‖m‖ and ‖m/D‖ of the blocks, (2, blocks).
    """
    momentum, quotient = norms
    unusable = ~torch.isfinite(quotient)
    quotient = torch.where(unusable, momentum, quotient)
    taken = scalars.finite.to(norms.dtype)
    factor = taken * scalars.lr / scalars.correction
    if hyper.grafted:
        graft = momentum / quotient / scalars.sigma
        # 0 / 0: no gradient yet, or an update that vanishes.
        factor = factor * torch.where(torch.isfinite(graft), graft, 0.0)
    return Scale(factor, taken, scalars.lr, unusable, torch.where(factor > 0, factor * quotient, 0.0))


def sigma_floor(batches: Iterable[Batch]) -> Tensor:
    """1e-7 of the RMS over every finite gradient of the step, shape ()."""
    batches = list(batches)
    return floor_of([grad_square(batch) for batch in batches], sum(sum(batch.sizes) for batch in batches))


def grad_square(batch: Batch) -> Tensor:
    """Σ g² over the gradients of a batch that are finite, shape ()."""
    squares = torch.stack(batch.grad_sqs).double()
    return torch.where(torch.isfinite(squares), squares, 0.0).sum()


def floor_of(totals: Sequence[Tensor], numbers: int) -> Tensor:
    """The floor of σ from Σ g² of parts of all gradients, which have so many numbers together."""
    if not totals:
        return torch.zeros(())
    return SIGMA_FLOOR * (torch.stack([total.to(totals[0].device) for total in totals]).sum() / numbers).sqrt()


def _advance_sigma(batch: Batch, hyper: Hyper, finite: Tensor, seen: Tensor, floor: Tensor) -> Tensor:
    # Divided one by one: a tensor of the sizes would have to be copied to the device, which waits for it.
    mean_sq = torch.stack(foreach_div(batch.grad_sqs, [float(size) for size in batch.sizes]))
    old = torch.stack(batch.sigma_sqs)
    new = torch.where(finite, old.lerp(mean_sq, 1 - hyper.beta2), old)
    foreach_copy(batch.sigma_sqs, list(new.unbind()))
    return torch.maximum((new / (1 - hyper.beta2**seen)).sqrt(), floor)
