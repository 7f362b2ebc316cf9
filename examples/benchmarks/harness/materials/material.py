"""What a problem is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch import nn

HELD_OUT = 0.1  # of the training data of an example: to tune on


@dataclass(frozen=True)
class Material:
    """Rows by split (train, tune, eval), how rows become a batch, and a model to start from."""

    splits: Mapping[str, Dataset]
    collate: Callable[[list[Any]], Mapping[str, Any]]
    make_model: Callable[[], nn.Module]


def with_tuning(train: Dataset, evaluation: Dataset) -> dict[str, Dataset]:
    """The splits of an example, and a third one out of its training data."""
    parts = train.train_test_split(HELD_OUT, seed=0)
    return {"train": parts["train"], "tune": parts["test"], "eval": evaluation}
