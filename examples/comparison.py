"""--compare: the same training once more with another optimizer, and a small table of the two."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from accelerate import PartialState
from transformers.training_args import OptimizerNames

from errors import InputError
from tables import markdown

SECONDS = "train_runtime"  # what the Trainer calls the time of a training


class Settings(Protocol):
    """What is different from one optimizer to the other; everything else is the same for both."""

    optim: Any
    optim_args: str | None
    learning_rate: float
    output_dir: str | None


SomeSettings = TypeVar("SomeSettings", bound=Settings)


@dataclass
class CompareArguments:
    """Which optimizer to compare with."""

    compare: str | None = field(
        default=None, metadata={"help": "Train once more with this optimizer (same seed, same data) and show both."}
    )
    compare_learning_rate: float | None = field(
        default=None, metadata={"help": "The learning rate of the optimizer that is compared. Default: the same."}
    )

    def __post_init__(self) -> None:
        known = [member.value for member in OptimizerNames]
        if self.compare is not None and self.compare not in known:
            raise InputError(f"--compare {self.compare}: unknown optimizer, expected one of {', '.join(sorted(known))}")
        if self.compare is None and self.compare_learning_rate is not None:
            raise InputError("--compare_learning_rate needs --compare, the optimizer that it is for")

    def other(self, settings: SomeSettings) -> SomeSettings:
        """The settings of the second training, in a folder of its own below the first one's."""
        other = copy.copy(settings)
        other.optim = type(settings.optim)(self.compare)
        other.optim_args = None
        if self.compare_learning_rate is not None:
            other.learning_rate = self.compare_learning_rate
        other.output_dir = str(Path(settings.output_dir or "") / f"compared_{self.compare}")
        return other


def train_and_compare(
    train: Callable[[SomeSettings], dict[str, float]],
    settings: SomeSettings,
    comparison: CompareArguments,
    metrics: Sequence[str],
) -> dict[str, float]:
    """Trains with each optimizer and shows these metrics of them. Returns all metrics of the first one.

    ``train`` seeds and makes its model itself, so that it can be called twice.
    """
    arms = [settings] if comparison.compare is None else [settings, comparison.other(settings)]
    results = [train(arm) for arm in arms]
    if len(arms) > 1 and PartialState().is_main_process:
        rows = [_row(arm, result, metrics) for arm, result in zip(arms, results, strict=True)]
        header = ["optimizer", "learning rate", *(name.removeprefix("eval_") for name in metrics), "seconds"]
        print(f"\n{markdown(header, rows)}")
    return results[0]


def _row(settings: Settings, result: dict[str, float], metrics: Sequence[str]) -> list[str]:
    name = str(getattr(settings.optim, "value", settings.optim))
    measured = [f"{result[metric]:.4f}" for metric in metrics]
    return [name, f"{settings.learning_rate:g}", *measured, f"{result[SECONDS]:.1f}"]
