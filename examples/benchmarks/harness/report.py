"""The tables of a benchmark of fine-tuning, in which an arm tunes its learning rate alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tables import markdown

from .arms import rate
from .runner import Run
from .timing import Timing
from .tuning import best


@dataclass
class Result:
    """What is known of an arm.

    Attributes:
        tuning: losses on the tuning split by learning rate.
        finals: runs at the best one, a run a seed.
        timing: of its steps.
    """

    tuning: dict[float, float]
    finals: Sequence[Run] = ()
    timing: Timing | None = None

    @property
    def lr(self) -> float:
        return best(self.tuning)

    def usable_rates(self, close: float) -> tuple[float, float]:
        """The learning rates around the best one whose tuning loss is within ``close`` of it."""
        rates = list(self.tuning)
        low = high = rates.index(self.lr)
        limit = self.tuning[self.lr] + close
        while low > 0 and self.tuning[rates[low - 1]] <= limit:
            low -= 1
        while high + 1 < len(rates) and self.tuning[rates[high + 1]] <= limit:
            high += 1
        return rates[low], rates[high]


def finetuning_table(results: Mapping[str, Result], baseline: str, steps: int, close: float) -> str:
    """Markdown: an arm a row, of a task whose predictions are right or wrong."""
    header = [
        "arm",
        "best lr",
        f"within {close} nats",
        "loss",
        "accuracy, %",
        f"seeds that end below {baseline}'s",
        "time / step",
        "state bytes / parameter",
    ]
    rows = [[name, *_finetuning_cells(result, results[baseline], steps, close)] for name, result in results.items()]
    return markdown(header, rows)


def _finetuning_cells(result: Result, baseline: Result, steps: int, close: float) -> list[str]:
    low, high = result.usable_rates(close)
    assert result.timing is not None and baseline.timing is not None
    ahead = sum(run.loss < base.loss for run, base in zip(result.finals, baseline.finals, strict=True))
    return [
        rate(result.lr),
        f"{rate(low)} – {rate(high)}",
        _mean_and_spread([run.loss for run in result.finals]),
        _mean_and_spread([100 * run.accuracy for run in result.finals if run.accuracy is not None], digits=1),
        "" if result is baseline else f"{ahead} of {len(result.finals)}",
        f"× {result.timing.seconds(steps) / baseline.timing.seconds(steps):.2f}",
        f"{result.finals[0].state_bytes_per_parameter:.2f}",
    ]


def tuning_table(results: Mapping[str, Result]) -> str:
    """Markdown: the loss on the tuning split of every arm at every learning rate that was tried."""
    rates = sorted({lr for result in results.values() for lr in result.tuning})
    rows = [
        [name, *(_loss(result.tuning[lr]) if lr in result.tuning else "" for lr in rates)]
        for name, result in results.items()
    ]
    return markdown(["tuning loss at lr", *map(rate, rates)], rows)


def _mean_and_spread(numbers: Sequence[float], digits: int = 3) -> str:
    if not numbers:
        return ""
    if not all(map(math.isfinite, numbers)):
        return "diverged"
    return f"{statistics.mean(numbers):.{digits}f} ± {(max(numbers) - min(numbers)) / 2:.{digits}f}"


def _loss(loss: float) -> str:
    return f"{loss:.3f}" if math.isfinite(loss) else "diverged"
