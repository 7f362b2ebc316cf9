"""Settings of the Trainer under which the statistics would be wrong: one error at the start, with what to use."""

from __future__ import annotations

import logging
import os
from typing import Any

from torch import nn
from transformers import TrainingArguments
from transformers.training_args import ParallelMode

from ..config.adafisher import AdaFisherConfig
from ..config.base import OptimizerConfig
from ..config.family import SIRFShampooConfig
from ..preconditioners import find
from ..statistics.estimators import make_estimator

logger = logging.getLogger(__name__)


def refuse_unsupported(args: TrainingArguments, model: nn.Module | None, config: AdaFisherConfig) -> None:
    """Checks how training will be distributed.

    Raises:
        ValueError: no model, FSDP1, DeepSpeed ZeRO, DataParallel or tensor parallelism, what the preconditioner of
            ``config`` cannot do with sharded parameters or several processes, or logits that its estimator cannot see.
    """
    name = _name(args)
    if model is None:
        raise ValueError(f'optim="{name}" needs the model for its curvature hooks: pass model=… to the Trainer')
    _refuse_fsdp1(args)
    preconditioner: Any = find(config.mode, config.structure).load()
    reason = preconditioner.refuses(config, sharded=fsdp_version(args) > 0, ranks=args.world_size)
    if reason is not None:
        raise ValueError(f"optim={name!r}: {reason}")
    _refuse_zero(args)
    _refuse_data_parallel(args)
    _refuse_tensor_parallel(args, model)
    _refuse_hidden_logits(args, config)
    if config.gradient_release:
        _refuse_released_gradients(args)


def refuse_other_shapes(args: TrainingArguments, model: nn.Module | None, config: OptimizerConfig) -> None:
    """Refuses what flattens parameters, or cuts them in another way than by rows.

    Raises:
        ValueError: FSDP1, DeepSpeed ZeRO or tensor parallelism.
    """
    _refuse_fsdp1(args)
    _refuse_zero(args)
    _refuse_tensor_parallel(args, model)


def refuse_shards(args: TrainingArguments, model: nn.Module | None, config: OptimizerConfig) -> None:
    """Refuses what splits parameters in any way.

    Raises:
        ValueError: FSDP2; or see ``refuse_other_shapes``.
    """
    refuse_other_shapes(args, model, config)
    if fsdp_version(args):
        raise ValueError(f"optim={_name(args)!r} takes no parameter that FSDP2 has split: use DDP")


def refuse_without_batch(args: TrainingArguments, model: nn.Module | None, config: SIRFShampooConfig) -> None:
    """Checks what SIRFShampoo needs; warns of a batch size that is not the Trainer's.

    Raises:
        ValueError: the number of samples is not known; or see ``refuse_other_shapes``.
    """
    refuse_other_shapes(args, model, config)
    if config.batch_size is None:
        raise ValueError(
            f"optim={_name(args)!r} needs the number of samples in a batch, which auto_find_batch_size=True leaves "
            "open: give optim_args='batch_size=…', or switch it off"
        )
    actual = samples_a_step(args)
    if actual not in (None, config.batch_size):
        message = "optim_args: batch_size=%d counts, though a step of this Trainer has %d samples"
        logger.warning(message, config.batch_size, actual)


def refuse_second_look(args: TrainingArguments, model: nn.Module | None, config: OptimizerConfig) -> None:
    """Checks that AdamQLR can run the model again, and differentiate it forwards.

    Raises:
        ValueError: FSDP, torch.compile, a loss scaler, a loss outside of the model, DataParallel; or see
            ``refuse_other_shapes``.
    """
    refuse_other_shapes(args, model, config)
    _refuse_data_parallel(args)
    reason = next((reason for reason, applies in _without_second_look(args).items() if applies), None)
    if reason is not None:
        raise ValueError(f"optim={_name(args)!r}: {reason}")


def _without_second_look(args: TrainingArguments) -> dict[str, bool]:
    """Why a model could not be run again or differentiated forwards, and whether that is so."""
    return {
        "no forward-mode product goes through FSDP2's gathers: use DDP": fsdp_version(args) > 0,
        "no forward-mode product goes through torch.compile: leave torch_compile out": args.torch_compile,
        "fp16 has a loss scaler, which skips steps: use float32 or bf16": args.fp16,
        "label_smoothing_factor makes the loss outside of the model, which has to be run again: leave it out": (
            args.label_smoothing_factor != 0
        ),
        "Liger's fused losses have no logits to take the curvature of: leave use_liger_kernel out": (
            args.use_liger_kernel
        ),
        "reentrant checkpoints have no forward-mode derivative: set use_reentrant=False": (
            _checkpoints_reentrantly(args)
        ),
    }


def samples_a_step(args: TrainingArguments) -> int | None:
    """How many samples the gradient of a step is of; None: that is found out in training."""
    if args.auto_find_batch_size:
        return None
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def _checkpoints_reentrantly(args: TrainingArguments) -> bool:
    options = [getattr(args, f"{kind}_checkpointing_kwargs", None) for kind in ("activation", "gradient")]
    return any(isinstance(given, dict) and given.get("use_reentrant", False) for given in options)


def _refuse_hidden_logits(args: TrainingArguments, config: AdaFisherConfig) -> None:
    estimator = make_estimator(config.estimator)
    if not (estimator.weighs_tokens or estimator.has_own_pass):
        return
    reasons = {
        "Liger's fused losses have no logits for it: leave use_liger_kernel out": args.use_liger_kernel,
        "a compiled graph does not show the gradient of the logits: leave torch_compile out": (
            args.torch_compile and estimator.weighs_tokens
        ),
        "reentrant checkpoints allow no second backward pass: set use_reentrant=False": (
            estimator.has_own_pass and _checkpoints_reentrantly(args)
        ),
    }
    reason = next((reason for reason, applies in reasons.items() if applies), None)
    if reason is not None:
        raise ValueError(f"estimator={config.estimator!r}: {reason}")


def _refuse_released_gradients(args: TrainingArguments) -> None:
    """What needs all gradients at once, or more than one backward pass a step."""
    reasons = {
        "ranks exchange their gradients after it: train in one process": args.world_size > 1 or fsdp_version(args) > 0,
        f"max_grad_norm={args.max_grad_norm:g} clips by the norm of all gradients: set max_grad_norm=0": (
            args.max_grad_norm is not None and args.max_grad_norm > 0
        ),
        "it steps at every backward pass: set gradient_accumulation_steps=1": args.gradient_accumulation_steps > 1,
        "fp16 has a loss scaler, which looks at all gradients before a step: use float32 or bf16": args.fp16,
    }
    reason = next((reason for reason, applies in reasons.items() if applies), None)
    if reason is not None:
        raise ValueError(f"gradient_release=True: {reason}")


def _name(args: TrainingArguments) -> str:
    return getattr(args.optim, "value", args.optim)


def _refuse_fsdp1(args: TrainingArguments) -> None:
    if fsdp_version(args) == 1:
        raise ValueError(
            f"optim={_name(args)!r} needs parameters in their own shape, FSDP1 flattens them: use FSDP2 "
            "(fsdp_config={'version': 2}; accelerate: fsdp_version: 2), or DDP"
        )


def _refuse_zero(args: TrainingArguments) -> None:
    if _zero_stage(args) > 0:
        raise ValueError(
            f"optim={_name(args)!r} needs parameters in their own shape, DeepSpeed ZeRO flattens them: "
            "use FSDP2 or DDP (accelerate launch without deepspeed), or ZeRO stage 0"
        )


def _refuse_data_parallel(args: TrainingArguments) -> None:
    if args.parallel_mode is ParallelMode.NOT_DISTRIBUTED:
        raise ValueError(
            f"optim={_name(args)!r} does not work with DataParallel: start one process a GPU (torchrun or accelerate "
            "launch, which use DDP), or show one GPU alone (CUDA_VISIBLE_DEVICES=0)"
        )


def _refuse_tensor_parallel(args: TrainingArguments, model: nn.Module | None) -> None:
    if (getattr(model, "tp_size", None) or 1) > 1:
        raise ValueError(
            f"optim={_name(args)!r} does not work with tensor parallelism, which splits each layer's inputs or outputs "
            "over the ranks: load the model without tp_plan and use FSDP2 or DDP"
        )


def fsdp_version(args: TrainingArguments) -> int:
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
