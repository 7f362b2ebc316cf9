"""The sources of Python's standard library: text of another kind that every machine has.

Files are cut into pieces, and the hash of a piece says which split it is in: all splits are of one distribution. News
is the shifted text.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .language import Corpus, LanguageProblem
from .news import NewsProblem

PIECE = 2000  # characters, and to the end of the line
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "encodings", "pydoc_data"}  # others' code, and tables
SPLITS = {0: "eval", 1: "tune"}  # by the last digit of the hash; the others are trained on


@dataclass(frozen=True)
class PythonProblem(LanguageProblem):
    """A small language model on the sources of the Python that runs it."""

    text: ClassVar[str] = "python"

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "python": platform.python_version()}

    def corpus(self) -> Corpus:
        splits: dict[str, list[str]] = {"train": [], "tune": [], "eval": []}
        for piece in pieces(Path(os.path.dirname(os.__file__))):
            splits[split_of(piece)].append(piece)
        return Corpus(**splits, shifted=NewsProblem().corpus().eval)


def pieces(folder: Path) -> Iterator[str]:
    """The text of all modules of a folder, files sorted by name."""
    for path in sorted(folder.rglob("*.py")):
        if LEFT_OUT.isdisjoint(path.relative_to(folder).parts):
            yield from _cut(path.read_text(encoding="utf-8", errors="ignore"))


def split_of(piece: str) -> str:
    """By the text itself: what stands in two files is in one split."""
    return SPLITS.get(int(hashlib.sha256(piece.strip().encode()).hexdigest(), 16) % 10, "train")


def _cut(text: str) -> Iterator[str]:
    piece = ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= PIECE:
            yield piece
            piece = ""
    if piece.strip():
        yield piece
