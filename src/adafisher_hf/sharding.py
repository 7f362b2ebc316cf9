"""Tensors that FSDP2 has split over the ranks (DTensors)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

try:
    from torch.distributed.tensor import DTensor
except ImportError:  # a torch without distributed
    DTensor = None  # type: ignore[assignment, misc]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a part of a larger one."""
    return DTensor is not None and isinstance(tensor, DTensor)


def local(tensor: Any) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """All of a tensor; for a sharded one every rank has to ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def check_placement(name: str, parameter: Any, second_moment: bool) -> None:
    """Refuses what is split in another way than FSDP2 and HSDP do.

    Args:
        name: of the parameter, for the error.
        parameter: any tensor.
        second_moment: whether its state has a full-size average in the basis.

    Raises:
        ValueError: split along another dimension than the first, over two mesh dimensions, or with such an average.
    """
    if not is_sharded(parameter):
        return
    *outer, last = parameter.placements
    if not (last.is_shard(0) and all(placement.is_replicate() for placement in outer)):
        raise ValueError(
            f"{name!r} is split as {tuple(parameter.placements)}: only FSDP2 (Shard(0)) and HSDP (Replicate, Shard(0)) "
            "are supported; load the model without tensor parallelism"
        )
    if second_moment:
        raise ValueError("second_moment='rotated' does not work with FSDP2: use second_moment='factors'")


def sum_over_ranks(vectors: Sequence[tuple[Tensor, dist.ProcessGroup | None]]) -> list[Tensor]:
    """The sums of each vector over the ranks of its group: one message a group.

    Args:
        vectors: of one dimension; float64 where any of them is.
    """
    sums: dict[int, Tensor] = {}
    for group in dict.fromkeys(ranks for _, ranks in vectors):
        indices = [i for i, (_, ranks) in enumerate(vectors) if ranks is group]
        dtype = max((vectors[i][0].dtype for i in indices), key=lambda dtype: dtype.itemsize)
        flat = torch.cat([vectors[i][0].to(dtype) for i in indices])
        dist.all_reduce(flat, group=group)
        parts = flat.split([len(vectors[i][0]) for i in indices])
        sums.update({i: part.to(vectors[i][0].dtype) for i, part in zip(indices, parts, strict=True)})
    return [sums[i] for i in range(len(vectors))]


def anywhere(here: bool, device: torch.device, ranks: dist.ProcessGroup | None) -> bool:
    """Whether something is so on any rank. Waits for the device."""
    flag = torch.tensor(float(here), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=ranks)
    return bool(flag)


def has_unreduced_gradients(model: nn.Module) -> bool:
    """Whether FSDP2 holds gradients of micro-batches that it has not synchronised: ``parameter.grad`` is None then."""
    for module in model.modules():
        get_state: Any = getattr(module, "_get_fsdp_state", None)
        state = None if get_state is None else get_state()
        one = getattr(state, "_fsdp_param_group", None)  # before torch had several
        for group in getattr(state, "_fsdp_param_groups", [one] if one is not None else []):
            if getattr(group, "_partial_reduce_output", None) is not None:  # HSDP without its all-reduce
                return True
            for parameter in group.fsdp_params:
                unsharded = getattr(parameter, "_unsharded_param", None)
                if parameter.unsharded_accumulated_grad is not None:
                    return True
                if unsharded is not None and unsharded.grad is not None:
                    return True
    return False
