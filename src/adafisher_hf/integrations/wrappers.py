"""What transformers does with our optimizers: the functions that ``patches`` puts in the place of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .entries import entry_of_name

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer, TrainingArguments


def optimizer_cls_and_kwargs(args: TrainingArguments, model: nn.Module | None) -> tuple[type, dict[str, Any]]:
    """What the Trainer needs to make the optimizer that ``args`` ask for.

    Raises:
        ValueError: no model where one is needed, invalid ``optim_args``, or a way to train that is refused.
    """
    entry = entry_of_name(args.optim)
    if entry is None:
        raise ValueError(f"no optimizer {args.optim!r} is registered")
    config = entry.config_of(args)
    entry.check(args, model, config)
    # Not under the name "model": Trainer.create_optimizer pops that and puts it in place of the parameter groups.
    network = {"network": model} if entry.needs_model else {}
    return entry.load(), {"lr": args.learning_rate, **network, **config.to_dict()}


def handle(context: Any) -> tuple[type, dict[str, Any]]:
    """Makes ``optimizer_cls_and_kwargs`` a handler of transformers."""
    return optimizer_cls_and_kwargs(context.args, context.model)


def with_raw_optim_args(original: Callable) -> staticmethod:
    """Wraps ``Trainer.get_optimizer_cls_and_kwargs``: the string is ours to read."""

    @functools.wraps(original)
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: nn.Module | None = None) -> tuple[Any, Any]:
        ours = entry_of_name(args.optim) is not None
        return (optimizer_cls_and_kwargs if ours else original)(args, model)

    return staticmethod(get_optimizer_cls_and_kwargs)


def with_checked_optim_args(original: Callable) -> Callable:
    """Wraps ``TrainingArguments.__post_init__``."""

    @functools.wraps(original)
    def __post_init__(self: TrainingArguments) -> None:
        original(self)
        entry = entry_of_name(self.optim)
        if entry is not None:
            entry.config_of(self)

    return __post_init__


def with_marked_save(original: Callable) -> Callable:
    """Wraps the Trainer's method that saves a checkpoint: until it is done, the folder holds none."""

    @functools.wraps(original)
    def save_checkpoint(self: Trainer, model: Any, trial: Any, *args: Any, **kwargs: Any) -> Any:
        if entry_of_name(self.args.optim) is not None:
            from ..compat import output_folder
            from .checkpoints import begin_save, folder_of_step

            if self.args.should_save:
                begin_save(folder_of_step(output_folder(self, trial), self.state.global_step))
            self.accelerator.wait_for_everyone()  # a rank that is ahead would write into what looks complete
        return original(self, model, trial, *args, **kwargs)

    return save_checkpoint


def with_complete_checkpoint(original: Callable) -> Callable:
    """Wraps ``Trainer.train``: a checkpoint whose save was cut short is none."""

    @functools.wraps(original)
    def train(self: Trainer, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        from .checkpoints import resumable

        if entry_of_name(self.args.optim) is not None:
            resume_from_checkpoint = resumable(resume_from_checkpoint, self.args.output_dir or "")
        return original(self, resume_from_checkpoint, *args, **kwargs)

    return train
