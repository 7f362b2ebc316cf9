"""From parameters to what the kernels take, and what ranks that share a parameter tell each other before the update."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .kernels import Batch, Divisor, Hyper
from .kernels.lengths import squared_lengths
from .pieces import Piece
from .sharding import local, sum_over_ranks

SIGMA_FLOOR = 1e-7  # σ is at least this multiple of the RMS of all gradients of a step


class Key(NamedTuple):
    """What the blocks of a batch have in common.

    Attributes:
        group: index of the parameter group.
        device: of parameters and state.
        dtype: of the state's scalars.
        ranks: those that hold the other rows of these parameters; None where all rows are here.
    """

    group: int
    device: torch.device
    dtype: torch.dtype
    ranks: dist.ProcessGroup | None


def add_parameter(
    batch: Batch, param: Tensor, state: dict[str, Tensor], piece: Piece, divisors: list[Divisor]
) -> Tensor:
    """Adds the blocks of one parameter that has a gradient; returns the weights that the kernel will update."""
    assert param.grad is not None
    weights = local(param.detach()).reshape(-1)
    batch.params += piece.views(weights)
    grads = piece.views(local(param.grad))
    batch.grads += grads
    batch.exp_avgs += piece.views(local(state["exp_avg"]))
    batch.steps += state["step"].unbind()
    compensation = state.get("compensation")
    batch.compensations += [None] * len(grads) if compensation is None else piece.views(local(compensation))
    batch.sigma_sqs += state["sigma_sq"].unbind() if "sigma_sq" in state else []
    batch.divisors += divisors
    batch.grad_sqs += [norm.square() for norm in torch._foreach_norm(grads, 2, state["step"].dtype)]
    batch.sizes += piece.sizes()
    return weights


def exchange(batches: dict[Key, Batch], make_hyper: Callable[[int, Tensor], Hyper]) -> dict[Key, Hyper]:
    """Completes the scalars of batches whose parameters are split over ranks, with one message of three floats a block.

    Where σ decides how long the momentum becomes (coupled weight decay) it takes two messages.

    Args:
        batches: changed in place: ``grad_sqs`` and ``lengths`` become those of the whole blocks.
        make_hyper: the numbers of a parameter group, from its index and the smallest σ.
    """
    split = {key: batch for key, batch in batches.items() if key.ranks is not None}
    hypers = {key: make_hyper(key.group, torch.zeros((), dtype=key.dtype, device=key.device)) for key in batches}
    coupled = any(hypers[key].weight_decay and not hypers[key].decoupled and hypers[key].calibrated for key in split)
    if coupled:
        _complete(split, grad_sqs=True)
    else:
        _complete(split, grad_sqs=True, hypers=hypers)
    floor = _sigma_floor(batches.values())
    hypers = {key: make_hyper(key.group, floor.to(key.device, key.dtype)) for key in batches}
    if coupled:
        _complete(split, hypers=hypers)
    return hypers


def _complete(batches: dict[Key, Batch], *, grad_sqs: bool = False, hypers: dict[Key, Hyper] | None = None) -> None:
    """Adds up Σ g² over the ranks, and with ``hypers`` the lengths, in one message."""
    messages = []
    for key, batch in batches.items():
        rows = [torch.stack(batch.grad_sqs).unsqueeze(0)] if grad_sqs else []
        if hypers is not None and hypers[key].calibrated:
            rows.append(squared_lengths(batch, hypers[key]))
        messages.append((torch.cat(rows).flatten() if rows else torch.empty(0, device=key.device), key.ranks))
    for batch, total in zip(batches.values(), sum_over_ranks(messages), strict=True):
        sums = total.view(-1, len(batch.sizes))
        if grad_sqs:
            batch.grad_sqs = list(sums[0].unbind())
        if len(sums) > 1:
            batch.lengths = sums[-2:].sqrt()


def _sigma_floor(batches: Iterable[Batch]) -> Tensor:
    """1e-7 of the RMS over every finite gradient of the step."""
    totals, numbers = [], 0
    for batch in batches:
        squares = torch.stack(batch.grad_sqs).double()
        totals.append(torch.where(torch.isfinite(squares), squares, 0.0).sum())
        numbers += sum(batch.sizes)
    if not totals:
        return torch.zeros(())
    return SIGMA_FLOOR * (torch.stack([total.to(totals[0].device) for total in totals]).sum() / numbers).sqrt()
