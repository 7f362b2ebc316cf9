"""What a Trainer computes of a causal language model's evaluation, beside the loss."""

from __future__ import annotations

import math

import numpy as np
import torch
from transformers import EvalPrediction

from .token_accuracy import TokenAccuracy


def most_likely(logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """For ``preprocess_logits_for_metrics``: all logits of an evaluation set would not fit into memory."""
    if isinstance(logits, tuple):
        logits = logits[0]
    return logits.argmax(dim=-1)


def language_metrics(evaluation: EvalPrediction) -> dict[str, float]:
    """For ``compute_metrics``: token accuracy and perplexity. Needs ``include_for_metrics=["loss"]``."""
    # What the model says at position t is about the token at t + 1.
    predictions, labels = np.asarray(evaluation.predictions)[:, :-1], np.asarray(evaluation.label_ids)[:, 1:]
    accuracy = TokenAccuracy(keep_in_memory=True).compute(predictions=predictions, references=labels)
    return {**accuracy, "perplexity": _perplexity(float(np.mean(np.asarray(evaluation.losses))))}


def _perplexity(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
