"""Texts and what they become, in three splits: to train, to tune on, and to report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from datasets import Dataset

from .split import hold_out

Rewritten = Mapping[str, Dataset]  # by split: train, tune, eval; columns source and target
HELD_OUT = 0.05


def rewritten_splits(families: Mapping[str, Sequence[tuple[str, str]]], evaluated: int) -> Rewritten:
    """Splits families of pairs at random, so that no pair has a relative on another side.

    Args:
        families: pairs of source and target that are alike. A source that comes again does not count.
        evaluated: pairs at most, to report and to tune on.
    """
    first: dict[str, tuple[str, str]] = {}
    for name, pairs in families.items():
        for source, target in pairs:
            first.setdefault(source, (name, target))
    kept: dict[str, list[tuple[str, str]]] = {}
    for source, (name, target) in first.items():
        kept.setdefault(name, []).append((source, target))
    evaluation, tuning, training = hold_out(list(kept), HELD_OUT, HELD_OUT)

    def rows(names: Iterable[str]) -> Dataset:
        pairs = [pair for name in names for pair in kept[name]]
        return Dataset.from_dict({"source": [pair[0] for pair in pairs], "target": [pair[1] for pair in pairs]})

    return {
        "train": rows(training),
        "tune": _some(rows(tuning), evaluated),
        "eval": _some(rows(evaluation), evaluated),
    }


def _some(rows: Dataset, count: int) -> Dataset:
    return rows.shuffle(seed=0).select(range(min(count, len(rows))))
