"""Token accuracy as an ``evaluate`` metric: defined here, because ``evaluate.load`` asks the Hub for its scripts."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

IGNORED = -100


class TokenAccuracy(evaluate.Metric):
    """The share of tokens that are predicted right, over rows of token ids. References of -100 do not count."""

    def _info(self) -> evaluate.MetricInfo:
        tokens = datasets.Sequence(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="predictions and references: rows of token ids, prediction t belonging to reference t",
            features=datasets.Features({"predictions": tokens, "references": tokens}),
        )

    def _compute(self, predictions: list[list[int]], references: list[list[int]]) -> dict[str, float]:
        predicted, expected = np.concatenate(predictions), np.concatenate(references)
        counted = expected != IGNORED
        return {"token_accuracy": float((predicted == expected)[counted].mean())}
