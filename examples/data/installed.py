"""Data that come in packages, found without importing them: some print, some need what is not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from errors import InputError


def folder_of(module: str, package: str) -> Path:
    """Where a package has its files.

    Raises:
        InputError: it is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise InputError(f"the data need the package {package}: pip install {package}")
    return Path(spec.origin).parent
