"""Processes that train together: DTensors, and the messages they send each other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .compat import DTensor, is_flat_parameter, is_managed_by_fsdp, is_replica

INSTEAD = "use FSDP2 (torch.distributed.fsdp.fully_shard) or DDP"
FSDP1 = f"AdaFisher needs parameters in their own shape, and FSDP1 flattens parameters: {INSTEAD}"
DEEPSPEED = f"AdaFisher needs parameters in their own shape, and DeepSpeed ZeRO flattens parameters: {INSTEAD}"
DATA_PARALLEL = (
    "DataParallel copies the model at every forward pass, and the copies' curvature would be lost: start one process "
    "a GPU (torchrun or accelerate launch) and use DDP or FSDP2"
)


def is_distributed(ranks: dist.ProcessGroup | None = None) -> bool:
    """Whether several processes train together, all or those of a group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(ranks) > 1


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a part of a larger one (FSDP2)."""
    return DTensor is not None and isinstance(tensor, DTensor)


def local(tensor: Any) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """All of a tensor; for a sharded one every rank has to ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def split_zeros(shape: Sequence[int], dtype: torch.dtype, like: Any) -> Tensor:
    """Zeros that lie on the ranks as another sharded tensor with as many rows does."""
    from torch.distributed.tensor import zeros

    return zeros(shape, dtype=dtype, device_mesh=like.device_mesh, placements=like.placements)


def check_wrapping(model: nn.Module) -> None:
    """Refuses a model whose modules are copied or whose parameters are flattened, whatever its parameters look like.

    Raises:
        ValueError: DataParallel or FSDP1, around the model or somewhere in it.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # who uses it has imported it
    fsdp1, fsdp2 = (getattr(fsdp, name, ()) for name in ("FullyShardedDataParallel", "FSDPModule"))
    modules = list(model.modules())
    if any(isinstance(module, nn.DataParallel) for module in modules):
        raise ValueError(DATA_PARALLEL)
    # FSDP1 may be around the model alone: then only its mark is left inside, which is FSDP2's as well.
    marked = any(is_managed_by_fsdp(module) for module in modules)
    split = any(isinstance(module, fsdp2) for module in modules) or any(is_sharded(p) for p in model.parameters())
    if any(isinstance(module, fsdp1) for module in modules) or (marked and not split):
        raise ValueError(FSDP1)


def refuse_replica(module: nn.Module, args: Any) -> None:
    """A forward pre-hook for the root of a model: DataParallel may be put around it at any time.

    Raises:
        ValueError: the module is a copy that DataParallel has made.
    """
    if not torch.compiler.is_compiling() and is_replica(module):
        raise ValueError(DATA_PARALLEL)


def check_placement(name: str, parameter: Any) -> None:
    """Refuses what is flattened, or split in another way than FSDP2 and HSDP do.

    Args:
        name: of the parameter, for the error.
        parameter: any tensor.

    Raises:
        ValueError: split along another dimension than the first, or over two mesh dimensions; or of FSDP1 or ZeRO.
    """
    if is_flat_parameter(parameter):
        raise ValueError(FSDP1)
    if hasattr(parameter, "ds_id"):
        raise ValueError(DEEPSPEED)
    if not is_sharded(parameter):
        return
    *outer, last = parameter.placements
    if not (last.is_shard(0) and all(placement.is_replicate() for placement in outer)):
        raise ValueError(
            f"{name!r} is split as {tuple(parameter.placements)}: only FSDP2 (Shard(0)) and HSDP (Replicate, Shard(0)) "
            "are supported; load the model without tensor parallelism"
        )


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


def any_rank(here: bool, device: torch.device, ranks: dist.ProcessGroup | None) -> bool:
    """Whether something is so on any rank. Waits for the device."""
    flag = torch.tensor(float(here), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=ranks)
    return bool(flag)
