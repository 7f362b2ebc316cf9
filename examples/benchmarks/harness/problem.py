"""What is learned. The splits tune and eval are disjoint: nothing is chosen on what is reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor, nn

Split = Literal["tune", "eval"]


class Scores(NamedTuple):
    """What a model is worth on a split that is not trained on.

    Attributes:
        loss: the mean.
        accuracy: where it is counted, the share of right predictions.
        shifted: where there is such text, the mean loss on text of another kind than the training text's.
        f1: of classes, the mean over them.
        exact: of texts, the share that is right from the first to the last token.
        calibration: where it is counted, the error of the confidence.
    """

    loss: float
    accuracy: float | None = None
    shifted: float | None = None
    f1: float | None = None
    exact: float | None = None
    calibration: float | None = None


class Problem(Protocol):
    """Everything a run needs to know of what it learns. Problems travel to other processes, without their data."""

    def describe(self) -> dict[str, Any]:
        """What a result depends on, as JSON; runs with different descriptions are different runs."""

    def model(self, seed: int) -> nn.Module: ...

    def batches(self, seed: int) -> Iterator[Any]:
        """Training batches without an end."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor: ...

    def evaluate(self, model: nn.Module, split: Split) -> Scores: ...
