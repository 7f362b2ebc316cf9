"""Settings of the Trainer under which the statistics would be wrong: one error at the start, with what to use."""

from __future__ import annotations

from torch import nn
from transformers import TrainingArguments
from transformers.training_args import ParallelMode


def refuse_unsupported(args: TrainingArguments, model: nn.Module) -> None:
    """Checks how training will be distributed.

    Raises:
        ValueError: FSDP, DeepSpeed ZeRO, DataParallel or tensor parallelism.
    """
    name = getattr(args.optim, "value", args.optim)
    if args.fsdp:
        raise ValueError(f"optim={name!r} does not support FSDP yet: use DDP (several processes, no fsdp)")
    if args.deepspeed and _zero_stage(args) > 0:
        raise ValueError(
            f"optim={name!r} needs parameters in their own shape, DeepSpeed ZeRO flattens them: "
            "use DDP (accelerate launch without deepspeed), or ZeRO stage 0"
        )
    if args.parallel_mode is ParallelMode.NOT_DISTRIBUTED:
        raise ValueError(
            f"optim={name!r} does not work with DataParallel: start one process a GPU (torchrun or accelerate launch, "
            "which use DDP), or show one GPU alone (CUDA_VISIBLE_DEVICES=0)"
        )
    if (getattr(model, "_tp_size", None) or 1) > 1:
        raise ValueError(
            f"optim={name!r} does not work with tensor parallelism, which splits each layer's inputs or outputs "
            "over the ranks: load the model without tp_plan and use DDP"
        )


def _zero_stage(args: TrainingArguments) -> int:
    config = getattr(args, "hf_deepspeed_config", None)
    return 0 if config is None else int(config.get_value("zero_optimization.stage", 0))
