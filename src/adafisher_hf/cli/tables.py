"""Plain text tables."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns as wide as their widest cell.

    Args:
        header: the first line.
        rows: the others.
        right: which columns are aligned to the right.
    """
    lines = [header, *rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    cells = [
        [
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in cells)


def show(text: str) -> None:
    """Prints it, also to somebody who stops reading, as in ``… | head``."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
