"""Makes ``optim="adafisher"`` and ``optim="adafisherw"`` known to transformers, and takes them away again.

Three places have to know the names: the Enum behind ``TrainingArguments.optim`` (also the choices of
HfArgumentParser), the table of optimizer handlers, and ``Trainer.get_optimizer_cls_and_kwargs``, which would otherwise
parse ``optim_args`` before any handler sees it. A fourth patch checks ``optim_args`` when TrainingArguments are made,
long before training, a fifth keeps ``Trainer.train`` from resuming from a checkpoint whose save was cut short, and a
sixth adds to ``Trainer.log`` what a CurvatureCallback has to report. Beside these, the registry of experts' forward
passes gets the one that takes their statistics. Nothing is remembered here: what is needed to
restore transformers hangs on the patches themselves, so that a second copy of this module (a re-import) can undo the
first one's work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import trainer_optimizer
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.trainer import Trainer
from transformers.training_args import OptimizerNames, TrainingArguments

from ..config import AdaFisherConfig
from ..curvature.experts import experts_forward
from ..curvature.layers.experts import IMPLEMENTATION
from ..optimizer import AdaFisher, AdaFisherW
from .callbacks import with_curvature
from .checkpoints import resumable
from .refusals import refuse_unsupported

OPTIMIZERS: dict[str, type[AdaFisher]] = {cls.name: cls for cls in (AdaFisher, AdaFisherW)}
ORIGINAL = "_adafisher_hf_original"


def register() -> None:
    """Adds the optimizers to transformers; calling it again changes nothing."""
    if all(trainer_optimizer._OPTIMIZER_HANDLERS.get(name) is _handle for name in OPTIMIZERS):
        return
    unregister()  # what another copy of this module may have left
    for name in OPTIMIZERS:
        member = _add_member(name.upper(), name)
        trainer_optimizer._OPTIMIZER_HANDLERS[member] = _handle
    _patch(Trainer, "get_optimizer_cls_and_kwargs", _with_raw_optim_args)
    _patch(TrainingArguments, "__post_init__", _with_checked_optim_args)
    _patch(Trainer, "train", _with_complete_checkpoint)
    _patch(Trainer, "log", with_curvature)
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, experts_forward)


def unregister() -> None:
    """Restores transformers as it was before ``register()``; does nothing if it was not called.

    A model whose experts run through ours needs another ``set_experts_implementation`` before it runs again.
    """
    for name in OPTIMIZERS:
        trainer_optimizer._OPTIMIZER_HANDLERS.pop(name, None)
        _remove_member(name.upper(), name)
    _unpatch(Trainer, "get_optimizer_cls_and_kwargs")
    _unpatch(TrainingArguments, "__post_init__")
    _unpatch(Trainer, "train")
    _unpatch(Trainer, "log")
    ALL_EXPERTS_FUNCTIONS._global_mapping.pop(IMPLEMENTATION, None)


def is_registered() -> bool:
    """Whether transformers knows the optimizers' names now."""
    return all(name in trainer_optimizer._OPTIMIZER_HANDLERS for name in OPTIMIZERS)


def optimizer_cls_and_kwargs(
    args: TrainingArguments, model: nn.Module | None
) -> tuple[type[AdaFisher], dict[str, Any]]:
    """What the Trainer needs to make the optimizer that ``args`` ask for.

    Raises:
        ValueError: no model, invalid ``optim_args``, or a way to distribute that is not supported.
    """
    name = _name(args)
    if model is None:
        raise ValueError(f'optim="{name}" needs the model for its curvature hooks: pass model=… to the Trainer')
    config = _config(args)
    refuse_unsupported(args, model, config)
    # Not under the name "model": Trainer.create_optimizer pops that and puts it in place of the parameter groups.
    return OPTIMIZERS[name], {"lr": args.learning_rate, "network": model, **config.to_dict()}


def _handle(context: trainer_optimizer.OptimizerContext) -> tuple[type[AdaFisher], dict[str, Any]]:
    return optimizer_cls_and_kwargs(context.args, context.model)


def _name(args: TrainingArguments) -> str:
    return str(getattr(args.optim, "value", args.optim))


def _config(args: TrainingArguments) -> AdaFisherConfig:
    return AdaFisherConfig.from_optim_args(args.optim_args, defaults={"beta": args.adam_beta1})


def _with_raw_optim_args(original: Callable) -> staticmethod:
    @functools.wraps(original)
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: nn.Module | None = None) -> tuple[Any, Any]:
        return (optimizer_cls_and_kwargs if _name(args) in OPTIMIZERS else original)(args, model)

    return staticmethod(get_optimizer_cls_and_kwargs)


def _with_checked_optim_args(original: Callable) -> Callable:
    @functools.wraps(original)
    def __post_init__(self: TrainingArguments) -> None:
        original(self)
        if _name(self) in OPTIMIZERS:
            _config(self)

    return __post_init__


def _with_complete_checkpoint(original: Callable) -> Callable:
    @functools.wraps(original)
    def train(self: Trainer, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        if _name(self.args) in OPTIMIZERS:
            resume_from_checkpoint = resumable(resume_from_checkpoint, self.args.output_dir or "")
        return original(self, resume_from_checkpoint, *args, **kwargs)

    return train


def _patch(owner: type, name: str, wrapper: Callable[[Callable], Any]) -> None:
    # From the class dict: getattr would hand out the function without its staticmethod, to be restored as a method.
    patched = wrapper(getattr(owner, name))
    setattr(patched, ORIGINAL, vars(owner)[name])
    setattr(owner, name, patched)


def _unpatch(owner: type, name: str) -> None:
    # A patch that someone else put over ours stays, and ours below it: without the names it only passes calls on.
    original = getattr(vars(owner)[name], ORIGINAL, None)
    if original is not None:
        setattr(owner, name, original)


def _add_member(name: str, value: str) -> OptimizerNames:
    member = str.__new__(OptimizerNames, value)
    member._name_ = name
    member._value_ = value
    # What else EnumType gives to a member; typeshed does not know these two.
    vars(member).update(__objclass__=OptimizerNames, _sort_order_=len(OptimizerNames._member_names_))
    type.__setattr__(OptimizerNames, name, member)
    OptimizerNames._member_names_.append(name)
    OptimizerNames._member_map_[name] = member
    OptimizerNames._value2member_map_[value] = member
    return member


def _remove_member(name: str, value: str) -> None:
    if name in OptimizerNames._member_map_:
        OptimizerNames._member_names_.remove(name)
        del OptimizerNames._member_map_[name]
        del OptimizerNames._value2member_map_[value]
        type.__delattr__(OptimizerNames, name)
