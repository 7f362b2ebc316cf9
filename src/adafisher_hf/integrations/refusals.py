"""Settings of the Trainer under which the statistics would be wrong: one error at the start, with what to use."""

from __future__ import annotations

import os
from typing import Any

from torch import nn
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from ..config.adafisher import AdaFisherConfig
from ..preconditioners import find


def refuse_unsupported(args: TrainingArguments, model: nn.Module | None, config: AdaFisherConfig) -> None:
    """Checks how training will be distributed.

    Raises:
        ValueError: no model, FSDP1, DeepSpeed ZeRO, DataParallel or tensor parallelism, or what the preconditioner of
            ``config`` cannot do with sharded parameters or several processes.
    """
    name = getattr(args.optim, "value", args.optim)
    if model is None:
        raise ValueError(f'optim="{name}" needs the model for its curvature hooks: pass model=… to the Trainer')
    fsdp = _fsdp_version(args)
    if fsdp == 1:
        raise ValueError(
            f"optim={name!r} needs parameters in their own shape, FSDP1 flattens them: use FSDP2 "
            "(fsdp_config={'version': 2}; accelerate: fsdp_version: 2), or DDP"
        )
    preconditioner: Any = find(config.mode, config.structure).load()
    reason = preconditioner.refuses(config, sharded=fsdp > 0, ranks=args.world_size)
    if reason is not None:
        raise ValueError(f"optim={name!r}: {reason}")
    if _zero_stage(args) > 0:
        raise ValueError(
            f"optim={name!r} needs parameters in their own shape, DeepSpeed ZeRO flattens them: "
            "use FSDP2 or DDP (accelerate launch without deepspeed), or ZeRO stage 0"
        )
    if args.parallel_mode is ParallelMode.NOT_DISTRIBUTED:
        raise ValueError(
            f"optim={name!r} does not work with DataParallel: start one process a GPU (torchrun or accelerate launch, "
            "which use DDP), or show one GPU alone (CUDA_VISIBLE_DEVICES=0)"
        )
    if (getattr(model, "tp_size", None) or 1) > 1:
        raise ValueError(
            f"optim={name!r} does not work with tensor parallelism, which splits each layer's inputs or outputs "
            "over the ranks: load the model without tp_plan and use FSDP2 or DDP"
        )


def _fsdp_version(args: TrainingArguments) -> int:
    """1 or 2 where FSDP is asked for, by the arguments or by ``accelerate launch``; 0 where it is not."""
    if args.fsdp:
        config: Any = args.fsdp_config or {}
        return 1 if config.get("xla") else int(config.get("version", 2))
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return int(os.environ.get("FSDP_VERSION", "1"))
    return 0


def _zero_stage(args: TrainingArguments) -> int:
    """Of DeepSpeed, asked for by the arguments or by ``accelerate launch``."""
    config, plugin = getattr(args, "hf_deepspeed_config", None), getattr(args, "deepspeed_plugin", None)
    if config is not None:
        return int(config.get_value("zero_optimization.stage", 0))
    return int(getattr(plugin, "zero_stage", None) or 0)
