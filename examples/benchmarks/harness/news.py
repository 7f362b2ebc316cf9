"""BBC News: the articles of ``make demo``, less those that are held out for tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from data.bbc import load_articles
from data.split import hold_out

from .language import Corpus, LanguageProblem

HELD_OUT = 0.1


@dataclass(frozen=True)
class NewsProblem(LanguageProblem):
    """A small language model on the BBC articles."""

    text: ClassVar[str] = "bbc"

    def corpus(self) -> Corpus:
        evaluation, tuning, training = hold_out([article.text for article in load_articles()], HELD_OUT, HELD_OUT)
        return Corpus(training, tuning, evaluation, shifted=[])
