"""How transformers is patched, module by module: each when it is imported, or at once if it has been.

Three places have to know the names: the Enum behind ``TrainingArguments.optim`` (also the choices of
HfArgumentParser), the table of optimizer handlers, and ``Trainer.get_optimizer_cls_and_kwargs``, which would otherwise
parse ``optim_args`` before any handler sees it. Beside these, ``optim_args`` are checked when TrainingArguments are
made, long before training; ``Trainer.train`` does not resume from a checkpoint whose save was cut short, and a save
into an older checkpoint begins by marking it so; ``Trainer.log`` gets what a CurvatureCallback has to report; and the
registry of experts' forward passes gets the one that takes their statistics.

What is needed to restore transformers hangs on its own modules, so that a second copy of this package (a re-import) can
undo the first one's work. The hooks on imports are wrapt's, the same for every package that waits for a module.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import wrapt

from .entries import OPTIMIZERS
from .wrappers import (
    handle,
    with_checked_optim_args,
    with_complete_checkpoint,
    with_marked_save,
    with_raw_optim_args,
)

MARK = "_adafisher_hf"  # attribute of all that is ours: of a module the Patch, of a method what it replaced
setattr(handle, MARK, True)


class Patch:
    """What is done to one module of transformers."""

    module: str

    def apply(self, module: Any) -> None:
        """Patches the module."""
        raise NotImplementedError

    def undo(self, module: Any) -> None:
        """Takes off what ``apply`` and ``add`` have put on."""
        raise NotImplementedError

    def add(self, module: Any, name: str) -> None:
        """Makes one optimizer known."""

    def remove(self, module: Any, name: str) -> None:
        """Takes one optimizer away, if it is there."""


class Arguments(Patch):
    """The names of the optimizers, and the check of their options when TrainingArguments are made."""

    module = "transformers.training_args"

    def apply(self, module: Any) -> None:
        from ..compat import has_enum_value

        for name, entry in list(OPTIMIZERS.items()):
            if entry.yields and has_enum_value(module.OptimizerNames, name):
                del OPTIMIZERS[name]
            else:
                self.add(module, name)
        replace(module.TrainingArguments, "__post_init__", with_checked_optim_args)

    def undo(self, module: Any) -> None:
        for member in [member for member in module.OptimizerNames if MARK in vars(member)]:
            self.remove(module, member.value)
        restore(module.TrainingArguments, "__post_init__")

    def add(self, module: Any, name: str) -> None:
        from ..compat import add_enum_member, has_enum_value

        if has_enum_value(module.OptimizerNames, name):
            raise ValueError(f"optim={name!r} is the name of another optimizer that transformers knows")
        vars(add_enum_member(module.OptimizerNames, name))[MARK] = True

    def remove(self, module: Any, name: str) -> None:
        from ..compat import remove_enum_member

        if name in [member.value for member in module.OptimizerNames if MARK in vars(member)]:
            remove_enum_member(module.OptimizerNames, name)


class Handlers(Patch):
    """The functions that make the optimizers."""

    module = "transformers.trainer_optimizer"

    def apply(self, module: Any) -> None:
        for name in OPTIMIZERS:
            self.add(module, name)

    def undo(self, module: Any) -> None:
        for name in list(_handlers(module)):
            self.remove(module, name)

    def add(self, module: Any, name: str) -> None:
        _handlers(module)[module.OptimizerNames(name)] = handle

    def remove(self, module: Any, name: str) -> None:
        if hasattr(_handlers(module).get(name), MARK):
            del _handlers(module)[name]


class TrainerMethods(Patch):
    """Methods of the Trainer."""

    module = "transformers.trainer"

    def apply(self, module: Any) -> None:
        from ..compat import SAVE_CHECKPOINT
        from .callbacks import with_curvature

        replace(module.Trainer, "get_optimizer_cls_and_kwargs", with_raw_optim_args)
        replace(module.Trainer, "train", with_complete_checkpoint)
        replace(module.Trainer, "log", with_curvature)
        if hasattr(module.Trainer, SAVE_CHECKPOINT):
            replace(module.Trainer, SAVE_CHECKPOINT, with_marked_save)

    def undo(self, module: Any) -> None:
        from ..compat import SAVE_CHECKPOINT

        for method in ("get_optimizer_cls_and_kwargs", "train", "log", SAVE_CHECKPOINT):
            if method in vars(module.Trainer):
                restore(module.Trainer, method)


class Experts(Patch):
    """The forward pass of experts that takes their statistics."""

    module = "transformers.integrations.moe"

    def apply(self, module: Any) -> None:
        from ..compat import experts_functions
        from ..layers.experts import IMPLEMENTATION
        from ..statistics.experts import experts_forward

        experts_functions(module)[IMPLEMENTATION] = experts_forward

    def undo(self, module: Any) -> None:
        from ..compat import experts_functions
        from ..layers.experts import IMPLEMENTATION

        experts_functions(module).pop(IMPLEMENTATION, None)


PATCHES: tuple[Patch, ...] = (Arguments(), Handlers(), TrainerMethods(), Experts())


# Putting them on and taking them off. ---------------------------------------------------------------------------------

_wanted = False
_awaited: set[str] = set()


def put_on() -> None:
    """Applies every patch whose module is loaded, and the others when theirs is; again, it changes nothing."""
    global _wanted
    _wanted = True
    for patch in PATCHES:
        if sys.modules.get(patch.module) is not None:
            _put_on(patch, importlib.import_module(patch.module))  # which waits where another thread is loading it
        elif patch.module not in _awaited:
            _awaited.add(patch.module)
            wrapt.register_post_import_hook(functools.partial(_arrived, patch), patch.module)


def take_off() -> None:
    """Undoes every patch, whichever copy of this package has made it."""
    global _wanted
    _wanted = False
    for patch in PATCHES:
        _take_off(sys.modules.get(patch.module))


def are_on() -> bool:
    """Whether every patch is on whose module is loaded, and the others will be."""
    modules = [sys.modules.get(patch.module) for patch in PATCHES]
    return all(_wanted if module is None else MARK in vars(module) for module in modules)


def add(name: str) -> None:
    """Makes one more optimizer known where the patches are on.

    Raises:
        ValueError: transformers knows another optimizer of this name.
    """
    for patch, module in _applied():
        patch.add(module, name)


def remove(name: str) -> None:
    """Takes one optimizer away where the patches are on."""
    for patch, module in _applied():
        patch.remove(module, name)


def _applied() -> list[tuple[Patch, ModuleType]]:
    modules = [(patch, sys.modules.get(patch.module)) for patch in PATCHES]
    return [(patch, module) for patch, module in modules if module is not None and MARK in vars(module)]


def _arrived(patch: Patch, module: ModuleType) -> None:
    _awaited.discard(patch.module)
    if _wanted:
        _put_on(patch, module)


def _put_on(patch: Patch, module: ModuleType) -> None:
    if vars(module).get(MARK) is not patch:
        _take_off(module)
        vars(module)[MARK] = patch
        try:
            patch.apply(module)
        except BaseException:
            _take_off(module)
            raise


def _take_off(module: ModuleType | None) -> None:
    found: Patch | None = None if module is None else vars(module).pop(MARK, None)
    if found is not None:
        found.undo(module)


def replace(owner: type, name: str, wrapper: Callable[[Callable], Any]) -> None:
    """Puts a wrapped method in the place of a method of a class."""
    # From the class dict: getattr would hand out the function without its staticmethod, to be restored as a method.
    patched = wrapper(getattr(owner, name))
    setattr(patched, MARK, (patched, vars(owner)[name]))
    setattr(owner, name, patched)


def restore(owner: type, name: str) -> None:
    """Undoes ``replace``."""
    # A patch that someone else put over ours stays, and ours below it: without the names it only passes calls on. Such
    # a patch may carry our mark: functools.wraps copies attributes.
    patched, original = getattr(vars(owner)[name], MARK, (None, None))
    if patched is vars(owner)[name]:
        setattr(owner, name, original)


def _handlers(module: ModuleType) -> dict[str, Any]:
    from ..compat import optimizer_handlers

    return optimizer_handlers(module)
