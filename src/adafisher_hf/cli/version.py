"""The version of the package, which lies above this room and is loaded before it."""

from __future__ import annotations

import pkgutil

PACKAGE = __name__.partition(".")[0]


def version() -> str:
    """That of the source that runs, installed or not."""
    return pkgutil.resolve_name(f"{PACKAGE}:__version__")
