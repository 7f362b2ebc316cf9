"""BBC News articles with their topics: business, entertainment, politics, sports, tech."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import ClassLabel, Dataset, Features, Value

from .bbc import Article, load_distinct
from .limits import LimitArguments, first
from .split import hold_out

EVALUATED = 0.1


def load_topics(limits: LimitArguments) -> tuple[Dataset, Dataset]:
    """Training and evaluation articles, with columns text and label."""
    articles = load_distinct()
    names = sorted({article.topic for article in articles})
    evaluation, training = hold_out(articles, EVALUATED)
    return (
        first(_rows(training, names), limits.max_train_samples),
        first(_rows(evaluation, names), limits.max_eval_samples),
    )


def _rows(articles: Sequence[Article], names: list[str]) -> Dataset:
    columns = {
        "text": [article.text for article in articles],
        "label": [names.index(article.topic) for article in articles],
    }
    return Dataset.from_dict(columns, Features({"text": Value("string"), "label": ClassLabel(names=names)}))
