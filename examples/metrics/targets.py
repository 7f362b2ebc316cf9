"""What a Trainer computes of a sequence-to-sequence model's evaluation, beside the loss."""

from __future__ import annotations

import numpy as np
from transformers import EvalPrediction

from .token_accuracy import TokenAccuracy


def target_metrics(evaluation: EvalPrediction) -> dict[str, float]:
    """For ``compute_metrics``: the share of right tokens, each after the true ones before it."""
    predictions, labels = np.asarray(evaluation.predictions), np.asarray(evaluation.label_ids)
    return TokenAccuracy(keep_in_memory=True).compute(predictions=predictions, references=labels)
