"""A class by its name: of transformers, or ``package.module:Class`` of anybody."""

from __future__ import annotations

import difflib
import importlib
import inspect
import operator
import os
import pkgutil
import sys
from typing import Any

from ..config.knobs import did_you_mean
from .errors import CommandError, one_line
from .runner import has_module

CLOSE = 0.8  # of 1: a class of transformers that is suggested


def of_transformers(name: str) -> Any:
    """The model or config of this name; None: there is none."""
    import transformers
    from torch import nn

    found = getattr(transformers, name, None) if name.isidentifier() else None
    is_ours = inspect.isclass(found) and issubclass(found, (nn.Module, transformers.PretrainedConfig))
    return found if is_ours else None


def like(name: str) -> list[str]:
    """The models and configs of transformers that may be meant, the likeliest first."""
    import transformers

    close = difflib.get_close_matches(name, dir(transformers), cutoff=CLOSE)
    return [known for known in close if of_transformers(known) is not None]


def find(name: str) -> Any:
    """The class or function that ``package.module:Class`` names; the working directory counts, as for ``python -m``.

    Raises:
        CommandError: there is no such thing, or it cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    if not (module_name and attribute):
        raise CommandError(f"a class is named package.module:Class, got {name!r}")
    module = _imported(module_name)
    try:
        found = operator.attrgetter(attribute)(module)
    except AttributeError:
        made = [key for key, value in vars(module).items() if _can_be_made(value)]
        hint = did_you_mean(attribute, made)
        raise CommandError(f"{module_name!r} has no {attribute!r}{hint}") from None
    if not _can_be_made(found):
        raise CommandError(f"{name!r} is neither a class nor a function that makes a model")
    return found


def _can_be_made(found: Any) -> bool:
    return inspect.isclass(found) or inspect.isfunction(found)


def _imported(name: str) -> Any:
    if not getattr(sys.flags, "safe_path", False) and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        if has_module(name):
            return importlib.import_module(name)
    except Exception as error:  # whatever somebody's module does when it is imported
        raise CommandError(f"cannot import {name!r}: {one_line(error)}") from error
    raise CommandError(f"no module named {name!r}{did_you_mean(name, _beside(name))}")


def _beside(name: str) -> list[str]:
    """The modules of the package that a name begins with; without one, what can be imported at all."""
    package = name.rpartition(".")[0]
    path = getattr(sys.modules.get(package), "__path__", None)
    return [f"{package}.{found.name}" if path else found.name for found in pkgutil.iter_modules(path)]
