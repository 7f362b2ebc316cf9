"""One step of all blocks, and what ranks that share a parameter tell each other on the way: two small messages.

Σ g² must be complete before σ is known, ‖m‖ and ‖m/D‖ before the update has its length.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..compat import foreach_norm
from ..ranks import sum_over_ranks
from .batch import Batch, Hyper, Key
from .divide import Divided, divide
from .scalars import Scalars, begin, finish, sigma_floor

LOUD = 8.0  # times the momentum in units of σ; of pure noise that is about 0.2
Lengths = dict[Key, Tensor]  # ‖α u‖ of every block of a batch


def take_step(batches: dict[Key, Batch], hypers: dict[Key, Hyper], kernel: Any, floor: Tensor | None = None) -> Lengths:
    """Updates the weights of all blocks, in place.

    Args:
        batches: by what their blocks have in common; ``grad_sqs`` become those of whole blocks.
        hypers: the numbers of each batch's parameter group.
        kernel: has ``advance``, ``ahead`` and ``apply``.
        floor: of σ, shape (), where these are not all gradients of the step; None: made from them.
    """
    split = {key: batch for key, batch in batches.items() if key.ranks is not None}
    _complete_grad_sqs(split)
    floor = sigma_floor(batches.values()) if floor is None else floor
    scalars = {key: begin(batch, hypers[key], floor.to(key.device, key.dtype)) for key, batch in batches.items()}
    lengths = {key: _step(batches[key], scalars[key], hypers[key], kernel) for key in batches if key not in split}
    return lengths | _step_split(split, scalars, hypers, kernel)


def _step(batch: Batch, scalars: Scalars, hyper: Hyper, kernel: Any) -> Tensor:
    lengths = []
    for bucket in batch.buckets():
        known = scalars[bucket]
        part = _average(batch[bucket], known, hyper, kernel)
        momenta = _momenta(part, known, hyper, kernel)
        divided = divide(part, momenta, known.sigma.dtype)
        scale = finish(known, hyper, _norms(part, momenta, divided, known))
        kernel.apply(part, momenta, divided.quotients, scale, hyper)
        lengths.append(scale.length)
    return torch.cat(lengths)


def _step_split(
    batches: dict[Key, Batch], scalars: dict[Key, Scalars], hypers: dict[Key, Hyper], kernel: Any
) -> Lengths:
    buckets = {key: list(batch.buckets(dist.get_world_size(key.ranks))) for key, batch in batches.items()}
    advanced = {key: _advance(batch, buckets[key], scalars[key], hypers[key], kernel) for key, batch in batches.items()}
    messages = [(norms.square().flatten(), key.ranks) for key, (_, norms) in advanced.items()]
    lengths = {}
    for total, (key, (gathered, _)) in zip(sum_over_ranks(messages), advanced.items(), strict=True):
        scale = finish(scalars[key], hypers[key], total.view(2, -1).sqrt())
        for bucket in buckets[key]:
            part = batches[key][bucket].decoded(scale.factor.dtype)
            momenta = _momenta(part, scalars[key][bucket], hypers[key], kernel)
            # Dividing again is cheaper than keeping all quotients, gathering again is not.
            found = {i - bucket.start: gathered[i] for i in range(bucket.start, bucket.stop) if i in gathered}
            divided = divide(part, momenta, scale.factor.dtype, found)
            kernel.apply(part, momenta, divided.quotients, scale[bucket], hypers[key])
        lengths[key] = scale.length
    return lengths


def _advance(
    batch: Batch, buckets: list[slice], scalars: Scalars, hyper: Hyper, kernel: Any
) -> tuple[dict[int, Tensor], Tensor]:
    """Quotients that were gathered, by the index of their block, and the norms of all."""
    gathered: dict[int, Tensor] = {}
    norms = []
    for bucket in buckets:
        known = scalars[bucket]
        part = _average(batch[bucket], known, hyper, kernel)
        momenta = _momenta(part, known, hyper, kernel)
        divided = divide(part, momenta, known.sigma.dtype)
        norms.append(_norms(part, momenta, divided, known))
        blocks = zip(range(bucket.start, bucket.stop), part.gathers, divided.quotients, strict=True)
        gathered.update({i: quotient for i, gather, quotient in blocks if gather is not None})
    return gathered, torch.cat(norms, dim=1)


def _average(part: Batch, scalars: Scalars, hyper: Hyper, kernel: Any) -> Batch:
    """A bucket whose momentum has seen the gradient."""
    numbers = part.decoded(scalars.sigma.dtype)
    kernel.advance(numbers, scalars, hyper)
    if numbers is part:
        return part
    part.encode(numbers.exp_avgs, scalars.finite)
    # The step takes what is kept: ranks that divide a second time, from codes, must find the same.
    return part.decoded(scalars.sigma.dtype)


def _momenta(part: Batch, scalars: Scalars, hyper: Hyper, kernel: Any) -> list[Tensor]:
    """What is divided; of the rows that are here."""
    return kernel.ahead(part, scalars, hyper) if hyper.nesterov else part.exp_avgs


def _norms(part: Batch, momenta: list[Tensor], divided: Divided, scalars: Scalars) -> Tensor:
    """‖m‖ and ‖m/D‖, (2, blocks), of the rows that are here; or the lengths that a block has of its own."""
    dtype = divided.quotients[0].dtype
    wanted, found = (list(foreach_norm(tensors, 2, dtype)) for tensors in (momenta, divided.quotients))
    units = scalars.sigma * scalars.correction  # what ``finish`` divides by
    for i in [i for i in divided.lengths if part.directions[i].follows]:
        pair = (i - 1, i)
        # 1 while there are gradients: only a momentum that dies away, or is noise below σ's floor, shortens the step.
        loudness = [divided.lengths[k].momentum / units[k] for k in pair]
        fade = (LOUD * torch.stack(loudness).nan_to_num(0.0).max()).clamp(max=1.0)
        for k in pair:
            wanted[k], found[k] = divided.lengths[k].wanted * fade * units[k], divided.lengths[k].found
    return torch.stack([torch.stack(wanted), torch.stack(found)])


def _complete_grad_sqs(batches: dict[Key, Batch]) -> None:
    messages = [(torch.stack(batch.grad_sqs), key.ranks) for key, batch in batches.items()]
    for batch, total in zip(batches.values(), sum_over_ranks(messages), strict=True):
        batch.grad_sqs = list(total.unbind())
