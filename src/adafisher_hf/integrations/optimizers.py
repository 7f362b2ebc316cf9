"""The optimizers that transformers is told of: ours, their relatives, and any that ``register_optimizer`` adds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..config.adafisher import AdaFisherConfig
from ..config.base import OptimizerConfig
from ..config.strings import TRAINER_ARGUMENTS
from . import patches
from .entries import OPTIMIZERS, OptimizerEntry, check_class
from .family import FAMILY

if TYPE_CHECKING:
    from .entries import FromTrainer, Refuses

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# Keyword arguments of an optimizer that are not its own: the Trainer or this package gives them.
RESERVED = (*TRAINER_ARGUMENTS, "config", "model", "network", "optimizer_dict", "params")

CITATION = """\
@inproceedings{martinsgomes2025adafisher,
  title     = {AdaFisher: Adaptive Second Order Optimization via Fisher Information},
  author    = {Martins Gomes, Damien and Zhang, Yanlei and Belilovsky, Eugene and Wolf, Guy and Hosseini, Mahdi S.},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2405.16397}
}
"""
PACKAGE = __name__.rpartition(".integrations.")[0]
OURS: dict[str, Any] = dict(
    config=AdaFisherConfig,
    needs_model=True,
    refuses=f"{PACKAGE}.integrations.refusals:refuse_unsupported",
    citation=CITATION,
    paper="https://arxiv.org/abs/2405.16397",
    from_trainer={"beta": "adam_beta1"},
    tag="adafisher",
)
OPTIMIZERS.update(
    adafisher=OptimizerEntry("adafisher", f"{PACKAGE}.optimizer:AdaFisher", **OURS),
    adafisherw=OptimizerEntry("adafisherw", f"{PACKAGE}.optimizer:AdaFisherW", **OURS),
    **FAMILY,
)


def register_optimizer(
    name: str,
    cls: type | str,
    config: type[OptimizerConfig],
    *,
    needs_model: bool = False,
    refuses: Refuses | str | None = None,
    citation: str = "",
    paper: str = "",
    from_trainer: Mapping[str, FromTrainer] | None = None,
) -> None:
    """Gives an optimizer a name of its own: ``TrainingArguments(optim=name, optim_args="key=value,…")``.

    The Trainer, the argument parser, callbacks, model card and command line know it from then on. Registering the same
    again changes nothing.

    Args:
        name: letters, digits and underscores, such as ``"lion"``.
        cls: a subclass of ``torch.optim.Optimizer``, or ``"module:Class"``, which is imported when it is used. It is
            made as ``cls(groups, lr=…, **knobs)``; the groups have the Trainer's weight decay.
        config: a frozen dataclass derived from ``OptimizerConfig``, every field a ``knob``.
        needs_model: make it with the model as well, as the keyword ``network``.
        refuses: a function of (args, model, config) that raises a ValueError for what the optimizer cannot do, or
            ``"module:function"``.
        citation: BibTeX, for the model card.
        paper: its address, for the model card.
        from_trainer: knobs that an attribute of TrainingArguments sets unless ``optim_args`` does, such as
            ``{"beta": "adam_beta1"}``, or a function of TrainingArguments.

    Raises:
        ValueError: the name cannot be used or is taken, or a knob has a name that the Trainer needs.
        TypeError: ``cls`` is no optimizer of torch (of a string this is found out when it is used), or ``config`` is no
            such dataclass.
    """
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise ValueError(f"the name of an optimizer must be letters, digits and underscores, got {name!r}")
    if not isinstance(cls, str):
        check_class(name, cls)
    elif ":" not in cls:
        raise ValueError(f"optim={name!r}: the class must be given as 'module:Class', got {cls!r}")
    _check_config(name, config)
    entry = OptimizerEntry(name, cls, config, needs_model, refuses, citation, paper, dict(from_trainer or {}), tag=name)
    if OPTIMIZERS.get(name) == entry:
        return
    if name in OPTIMIZERS:
        raise ValueError(f"optim={name!r} is registered already: call unregister_optimizer({name!r}) first")
    patches.add(name)
    OPTIMIZERS[name] = entry


def unregister_optimizer(name: str) -> None:
    """Takes a name away again; an optimizer that has been made goes on as it is.

    Raises:
        ValueError: no optimizer is registered under this name.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"no optimizer {name!r} is registered: there are {', '.join(OPTIMIZERS)}")
    del OPTIMIZERS[name]
    patches.remove(name)


def register() -> None:
    """Makes the optimizers known to transformers, now or when it is imported; calling it again changes nothing."""
    patches.put_on()


def unregister() -> None:
    """Restores transformers as it was before ``register()``; does nothing if it was not called.

    What ``register_optimizer`` has added comes back with the next ``register()``. A model whose experts run through
    ours needs another ``set_experts_implementation`` before it runs again.
    """
    patches.take_off()


def is_registered() -> bool:
    """Whether transformers knows the optimizers' names, or will when it is imported."""
    return patches.are_on()


def _check_config(name: str, config: Any) -> None:
    # A subclass that is no dataclass itself would have the fields of its base: none.
    is_config = isinstance(config, type) and issubclass(config, OptimizerConfig)
    if not (is_config and "__dataclass_fields__" in vars(config)):
        raise TypeError(f"optim={name!r}: the config must be a dataclass derived from OptimizerConfig, got {config!r}")
    for field in dataclasses.fields(config):
        if "allowed" not in field.metadata or field.default is dataclasses.MISSING:
            raise TypeError(f"optim={name!r}: {config.__name__}.{field.name} must be a knob(default, allowed, help)")
        if field.name in RESERVED:
            raise ValueError(f"optim={name!r}: no knob may have the name {field.name!r}, which the Trainer needs")
