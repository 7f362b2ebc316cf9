"""What a model is worth on a split: means over all targets, whatever batches they come in."""

from __future__ import annotations

import math

import torch
from sklearn.metrics import f1_score
from torch import Tensor

from metrics.token_accuracy import IGNORED

from .problem import Scores

BINS = 15  # of confidence, for the calibration error


class Tally:
    """Predictions and targets: classes of examples, or tokens, of which those that are ignored do not count."""

    def __init__(self) -> None:
        self._loss = 0.0
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []  # predictions, targets, confidence; of a row or a batch

    def add(self, logits: Tensor, targets: Tensor, loss: float) -> None:
        """A batch.

        Args:
            logits: (batch, classes) or (batch, tokens, classes).
            targets: (batch,) or (batch, tokens).
            loss: the mean over all that count.
        """
        confidence, predictions = logits.float().softmax(-1).max(-1)
        columns = [column.reshape(len(targets), -1) for column in (predictions, targets, confidence)]
        counted = columns[1] != IGNORED
        self._loss += loss * int(counted.sum())
        for chosen, *row in zip(counted, *columns, strict=True):
            self._rows.append((row[0][chosen], row[1][chosen], row[2][chosen]))

    def scores(self) -> Scores:
        predictions, targets, confidence = (torch.cat([row[k] for row in self._rows]) for k in range(3))
        right = (predictions == targets).double()
        of_tokens = any(row[0].numel() > 1 for row in self._rows)
        return Scores(
            self._loss / len(targets),
            accuracy=right.mean().item(),
            f1=None if of_tokens else float(f1_score(targets, predictions, average="macro")),
            exact=_share_all_right(self._rows) if of_tokens else None,
            calibration=calibration_error(confidence, right),
        )


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """How far confidence and accuracy lie apart, the mean over bins of confidence (Guo et al. 2017).

    Args:
        confidence: probability of what was predicted, (targets,).
        right: 1 or 0, (targets,).
    """
    if not confidence.isfinite().all():
        return math.nan
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, right.double() - confidence.double())
    return (gaps.abs().sum() / len(right)).item()


def _share_all_right(rows: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    """The share of texts that greedy decoding would write without a mistake: as long as all is right, the model sees
    the same tokens before the next one."""
    return sum(bool((predictions == targets).all()) for predictions, targets, _ in rows) / len(rows)
