"""Texts with a class each, in three splits: to train, to tune on, and to report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from datasets import ClassLabel, Dataset, Features, Value

from .split import hold_out

Labelled = Mapping[str, Dataset]  # by split: train, tune, eval; columns text and label


def labelled_splits(classes: Mapping[str, str], names: Sequence[str], held_out: int) -> Labelled:
    """Splits texts at random, so many for evaluation and as many to tune on.

    Args:
        classes: the name of its class by text.
        names: of all classes, in the order of their labels.
    """
    share = held_out / len(classes)
    evaluation, tuning, training = hold_out(list(classes), share, share)
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})

    def rows(texts: Sequence[str]) -> Dataset:
        return Dataset.from_dict({"text": texts, "label": [names.index(classes[text]) for text in texts]}, features)

    return {"train": rows(training), "tune": rows(tuning), "eval": rows(evaluation)}
