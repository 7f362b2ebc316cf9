"""Warnings in the middle of training: on a line of their own, not glued to a progress bar."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any


def warn(logger: logging.Logger, message: str, *args: Any) -> None:
    """Logs a warning; the bars of tqdm, if it is in use, are taken off the line for it and drawn again."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    with contextlib.nullcontext() if tqdm is None else tqdm.external_write_mode(file=sys.stderr):
        logger.warning(message, *args)
