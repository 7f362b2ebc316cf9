"""A picture of a report, and what goes with it."""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

from .vega import Spec

LONGEST_FILE = 60  # characters of a run's or a metric's name in that of a file


class Panel(NamedTuple):
    """One picture.

    Attributes:
        file: its name as a file, without ending.
        title: what it shows.
        hint: how to read it.
        text: what is to be seen, in words and numbers, for those who do not see it.
        spec: the picture itself.
    """

    file: str
    title: str
    hint: str
    text: str
    spec: Spec


def file_name(label: str) -> str:
    """A run's or a metric's name as that of a file, apart from others like it."""
    safe = re.sub(r"[^\w.-]+", "_", label)
    if safe == label and len(label) <= LONGEST_FILE:
        return label
    return f"{safe[:LONGEST_FILE]}_{zlib.crc32(label.encode(errors='replace')):08x}"
