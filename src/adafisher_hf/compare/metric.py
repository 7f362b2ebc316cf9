"""The number that a comparison is about."""

from __future__ import annotations

import math
from dataclasses import dataclass

SMALLER_IS_BETTER = ("loss", "perplexity", "ppl", "error", "wer", "cer", "mse", "mae", "rmse")
TUNED, REPORTED = "eval_", ("test_", "predict_")


@dataclass(frozen=True)
class Metric:
    """A metric of the Trainer's evaluation.

    Attributes:
        name: ``eval_loss``.
        greater_is_better: whether it is.
    """

    name: str
    greater_is_better: bool

    def cost(self, value: float) -> float:
        """A value with its sign such that the lower is the better; infinite where it is none."""
        return math.inf if not math.isfinite(value) else -value if self.greater_is_better else value

    def on_test_splits(self) -> list[str]:
        """What the script may call the same number on a split that nothing was chosen by."""
        name = self.name.removeprefix(TUNED)
        return [prefix + name for prefix in REPORTED]

    @property
    def direction(self) -> str:
        return "higher" if self.greater_is_better else "lower"


def metric_of(name: str, greater_is_better: bool | None) -> Metric:
    """The metric of a name; what is no loss or error is taken for something of which more is better.

    Args:
        name: with its prefix or without.
        greater_is_better: None: by the name.
    """
    name = name if name.startswith(TUNED) else TUNED + name
    greater = name.rpartition("_")[2] not in SMALLER_IS_BETTER if greater_is_better is None else greater_is_better
    return Metric(name, greater)
