"""How much of the data is used."""

from __future__ import annotations

from dataclasses import dataclass, field

from datasets import Dataset

from errors import InputError


@dataclass
class LimitArguments:
    """How many examples to train and to evaluate on."""

    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many examples only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many examples only."})

    def __post_init__(self) -> None:
        at_least_one(self, "max_train_samples", "max_eval_samples")


def at_least_one(arguments: object, *flags: str) -> None:
    """Raises InputError where one of these flags has been given a number below one."""
    for flag in flags:
        value = getattr(arguments, flag)
        if value is not None and value < 1:
            raise InputError(f"--{flag} must be at least 1, got {value}")


def first(rows: Dataset, limit: int | None) -> Dataset:
    return rows if limit is None else rows.select(range(min(limit, len(rows))))
