"""Preferences without annotators: an article's own continuation is better than that of another article."""

from __future__ import annotations

from collections.abc import Sequence

WORDS = 40  # of the prompt, and of each continuation: an article has hundreds


def preferences(texts: Sequence[str]) -> list[dict[str, str]]:
    """Rows of prompt, chosen and rejected; the rejected continuation is that of the next article."""
    halves = [_halves(text) for text in texts]
    others = halves[1:] + halves[:1]
    return [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        for (prompt, chosen), (_, rejected) in zip(halves, others, strict=True)
    ]


def _halves(text: str) -> tuple[str, str]:
    words = text.split()
    return " ".join(words[:WORDS]), " " + " ".join(words[WORDS : 2 * WORDS])
