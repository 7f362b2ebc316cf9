"""Runs somebody else's script or module as ``__main__``, as ``python`` would, with the optimizers registered."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence

from .errors import CommandError


def run_script(script: str, args: Sequence[str]) -> None:
    """Runs a script, or a folder or zip file with a ``__main__.py``. Whatever it raises passes through.

    Raises:
        CommandError: no such script.
    """
    if not os.path.exists(script):
        raise CommandError(f"no script {script!r} in {os.getcwd()!r}", status=2)
    sys.argv = [script, *args]
    is_source = os.path.isfile(script) and not _is_zip(script)
    # runpy itself puts a folder or a zip file onto the path.
    _replace_own_path([os.path.dirname(os.path.realpath(script))] if is_source else [])
    runpy.run_path(script, run_name="__main__")


def run_module(module: str, args: Sequence[str]) -> None:
    """Runs a module or a package's ``__main__``, like ``python -m``. Whatever it raises passes through.

    Raises:
        CommandError: no such module.
    """
    _replace_own_path([os.getcwd()])
    if not has_module(module):
        raise CommandError(f"no module named {module!r}")
    sys.argv = [module, *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def has_module(name: str) -> bool:
    """Whether there is a module of this name; its package is imported, and what that raises passes through."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        # Of "a.b" the package "a" is imported; what that fails to import is its own trouble, to be shown in full.
        if name == error.name or name.startswith(f"{error.name}."):
            return False
        raise


def _replace_own_path(entries: list[str]) -> None:
    # sys.path[0] is the place of our own command; with -P, python puts nothing there at all.
    if not getattr(sys.flags, "safe_path", False):
        sys.path[:1] = entries


def _is_zip(path: str) -> bool:
    import zipfile

    return zipfile.is_zipfile(path)
