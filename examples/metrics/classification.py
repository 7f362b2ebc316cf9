"""Accuracy as an ``evaluate`` metric: defined here, because ``evaluate.load`` asks the Hub for its scripts."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np
from transformers import EvalPrediction


class Accuracy(evaluate.Metric):
    """The share of examples whose class is predicted right."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="predictions and references: classes",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": float(np.mean(np.asarray(predictions) == np.asarray(references)))}


def classification_metrics(evaluation: EvalPrediction) -> dict[str, float]:
    """For ``compute_metrics``."""
    classes = np.asarray(evaluation.predictions).argmax(axis=-1)
    return Accuracy(keep_in_memory=True).compute(predictions=classes, references=evaluation.label_ids)
