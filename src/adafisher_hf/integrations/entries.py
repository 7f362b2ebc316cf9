"""OPTIMIZERS: what the Hugging Face layer knows of an optimizer, by the name that ``TrainingArguments.optim`` has.

Nothing here imports torch or transformers, and an entry can name its class by a string: it is imported when it is used.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..config.base import OptimizerConfig
from ..config.knobs import knobs_of

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainingArguments

    Refuses = Callable[[TrainingArguments, nn.Module | None, OptimizerConfig], None]
    FromTrainer = str | Callable[[TrainingArguments], Any]


@dataclass(frozen=True)
class OptimizerEntry:
    """An optimizer and what belongs to it.

    Attributes:
        name: of ``TrainingArguments.optim``.
        target: the class, or ``"module:Class"``. The Trainer makes it of parameter groups (which have the learning rate
            and the weight decay), ``lr`` and the knobs of the config.
        config: its options.
        needs_model: it is made with the model as the keyword ``network``.
        refuses: raises a ValueError for ways to train that it cannot do; or ``"module:function"``.
        citation: BibTeX, for the model card.
        paper: address, for the model card.
        from_trainer: knobs that an attribute of TrainingArguments sets, unless ``optim_args`` does. Where a knob's
            default is None the optimizer chooses, unless the attribute was changed. In place of an attribute: a
            function of TrainingArguments, always asked.
        tag: of the model card.
        yields: where transformers has an optimizer of its own by this name, that is meant.
    """

    name: str
    target: type | str
    config: type[OptimizerConfig]
    needs_model: bool = False
    refuses: Refuses | str | None = None
    citation: str = ""
    paper: str = ""
    from_trainer: Mapping[str, FromTrainer] = field(default_factory=dict)
    tag: str = ""
    yields: bool = False

    def load(self) -> type:
        """The class.

        Raises:
            TypeError: it is no optimizer of torch.
        """
        cls = pkgutil.resolve_name(self.target) if isinstance(self.target, str) else self.target
        check_class(self.name, cls)
        return cls

    def loaded(self) -> type | None:
        """The class if it has been imported: without that nobody has made an object of it."""
        if isinstance(self.target, str) and self.target.partition(":")[0] not in sys.modules:
            return None
        return self.load()

    def config_of(self, args: TrainingArguments) -> OptimizerConfig:
        """The options that TrainingArguments ask for.

        Raises:
            ValueError, TypeError, OSError: see ``OptimizerConfig.from_optim_args``.
        """
        defaults = {
            knob: source(args) if callable(source) else getattr(args, source)
            for knob, source in self.from_trainer.items()
            if callable(source) or not (knobs_of(self.config)[knob].default is None and _is_default(args, source))
        }
        return self.config.from_optim_args(args.optim_args, defaults=defaults, token=_token_of(args))

    def check(self, args: TrainingArguments, model: nn.Module | None, config: OptimizerConfig) -> None:
        """Refuses what this optimizer cannot do.

        Raises:
            ValueError: there is no model, or the entry's own ``refuses`` says so.
        """
        refuses = pkgutil.resolve_name(self.refuses) if isinstance(self.refuses, str) else self.refuses
        if refuses is not None:
            refuses(args, model, config)
        if self.needs_model and model is None:
            raise ValueError(f'optim="{self.name}" needs the model: pass model=… to the Trainer')


OPTIMIZERS: dict[str, OptimizerEntry] = {}


def check_class(name: str, cls: Any) -> None:
    """Checks that a class can be registered under a name.

    Raises:
        TypeError: it is no optimizer of torch.
    """
    # torch.optim.Optimizer by its name: what is not loaded cannot be the base of a class.
    base = getattr(sys.modules.get("torch.optim"), "Optimizer", None)
    if not (base is not None and isinstance(cls, type) and issubclass(cls, base)):
        raise TypeError(f"optim={name!r} must be a subclass of torch.optim.Optimizer, got {cls!r}")


def entry_of_name(optim: Any) -> OptimizerEntry | None:
    """The entry that ``TrainingArguments.optim`` names, a string or a member of transformers' Enum."""
    return OPTIMIZERS.get(str(getattr(optim, "value", optim)))


def entry_of_optimizer(optimizer: Any, args: TrainingArguments | None = None) -> OptimizerEntry | None:
    """The entry of an optimizer, inside accelerate's wrappers or not: of its class, else of the nearest base class.

    Args:
        optimizer: anything, also None.
        args: of the Trainer: of several names of a class, the one that they say.
    """
    found = _entries_of_class(type(unwrapped(optimizer)))
    named = None if args is None else entry_of_name(args.optim)
    return named if named in found else next(iter(found), None)


def config_of(optimizer: Any, args: TrainingArguments) -> OptimizerConfig | None:
    """The options of an optimizer that is in use, every default filled in.

    They are what it says itself (``optimizer.config``), else what ``args`` asked for; None where neither is known.

    Args:
        optimizer: inside accelerate's wrappers or not; also None.
        args: of the Trainer.
    """
    config = getattr(unwrapped(optimizer), "config", None)
    if isinstance(config, OptimizerConfig):
        return config
    entry = entry_of_optimizer(optimizer, args)
    return entry.config_of(args).resolved() if entry is not None and entry is entry_of_name(args.optim) else None


def unwrapped(optimizer: Any) -> Any:
    """The optimizer inside accelerate's wrappers; a registered one that holds another optimizer is not opened."""
    layers = list(_layers(optimizer))
    return next((layer for layer in layers if _entries_of_class(type(layer))), layers[-1])


def _is_default(args: TrainingArguments, attribute: str) -> bool:
    field = getattr(type(args), "__dataclass_fields__", {}).get(attribute)
    return field is not None and getattr(args, attribute) == field.default


def _token_of(args: TrainingArguments) -> str | None:
    """``hub_token``, but for the ``<HUB_TOKEN>`` that transformers writes in its place."""
    token = getattr(args, "hub_token", None)
    return None if token is None or token.startswith("<") else token


def _layers(optimizer: Any) -> Iterator[Any]:
    yield optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
        yield optimizer


def _entries_of_class(cls: type) -> list[OptimizerEntry]:
    loaded = [(entry.loaded(), entry) for entry in OPTIMIZERS.values()]
    of_bases = ([entry for found, entry in loaded if found is base] for base in cls.__mro__)
    return next(filter(None, of_bases), [])
