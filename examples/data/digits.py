"""scikit-learn's digits: 1797 handwritten digits of 8 × 8 pixels."""

from __future__ import annotations

import numpy as np
from datasets import Array3D, ClassLabel, Dataset, Features
from sklearn.datasets import load_digits as load_bunch

from .limits import LimitArguments, first
from .split import hold_out

SIDE = 8
DARKEST = 16
EVALUATED = 0.2


def load_digits(limits: LimitArguments) -> tuple[Dataset, Dataset]:
    """Training and evaluation digits, with columns pixel_values (between -1 and 1) and labels."""
    bunch = load_bunch()
    evaluation, training = hold_out(range(len(bunch.target)), EVALUATED)
    pixels = bunch.images[:, None].astype(np.float32) / DARKEST * 2 - 1
    features = Features(
        {"pixel_values": Array3D((1, SIDE, SIDE), "float32"), "labels": ClassLabel(names=list(map(str, range(10))))}
    )

    def rows(chosen: list[int]) -> Dataset:
        columns = {"pixel_values": list(pixels[chosen]), "labels": bunch.target[chosen]}
        return Dataset.from_dict(columns, features).with_format("torch")

    return first(rows(training), limits.max_train_samples), first(rows(evaluation), limits.max_eval_samples)
