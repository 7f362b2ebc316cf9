"""The table and the picture of a benchmark."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plotting import plot_arms
from tables import markdown

from .runner import Run
from .timing import Timing
from .tuning import GRID, best

CLOSE = 0.1  # nats


@dataclass
class Result:
    """What is known of an arm.

    Attributes:
        tuning: losses on the tuning split by learning rate.
        finals: runs at the best one, a run a seed.
        steps_to_baseline: the shortest schedule that ends at the baseline's final loss or below; None: not reached.
        timing: of its steps.
        equal_time: runs that take as long as the baseline's, a run a seed.
    """

    tuning: dict[float, float]
    finals: Sequence[Run] = ()
    steps_to_baseline: int | None = None
    timing: Timing | None = None
    equal_time: Sequence[Run] = ()

    @property
    def lr(self) -> float:
        return best(self.tuning)

    @property
    def mean_loss(self) -> float:
        return statistics.mean(run.loss for run in self.finals)

    def usable_rates(self, close: float = CLOSE) -> tuple[float, float]:
        """The learning rates around the best one whose tuning loss is within ``close`` of it."""
        rates = list(self.tuning)
        low = high = rates.index(self.lr)
        limit = self.tuning[self.lr] + close
        while low > 0 and self.tuning[rates[low - 1]] <= limit:
            low -= 1
        while high + 1 < len(rates) and self.tuning[rates[high + 1]] <= limit:
            high += 1
        return rates[low], rates[high]


def results_table(results: Mapping[str, Result], baseline: str, steps: int) -> str:
    """Markdown: an arm a row. The spread is half the distance between the best and the worst seed."""
    header = [
        "arm",
        "best lr",
        f"within {CLOSE} nats",
        f"loss at {steps} steps",
        f"loss at {baseline}'s time",
        f"steps to {baseline}'s loss",
        "time to it",
        "time / step",
        "state bytes / parameter",
    ]
    rows = [[name, *_cells(result, results[baseline], steps)] for name, result in results.items()]
    seeds = len(results[baseline].finals)
    note = (
        f"Mean ± half range over {seeds} seeds. Time is relative to {baseline}'s whole run; in brackets that of a step "
        "after the dense warm-up."
    )
    if any(result.lr not in GRID for result in results.values()):
        note += f" * beyond the common grid {', '.join(map(_rate, GRID))}, which grows while the best is on its edge."
    return f"{markdown(header, rows)}\n\n{note}"


def _cells(result: Result, baseline: Result, steps: int) -> list[str]:
    low, high = result.usable_rates()
    assert result.timing is not None and baseline.timing is not None
    whole = baseline.timing.seconds(steps)
    reached = steps if result is baseline else result.steps_to_baseline
    return [
        _rate(result.lr) + ("" if result.lr in GRID else " *"),
        f"{_rate(low)} – {_rate(high)}",
        _mean_and_spread([run.loss for run in result.finals]),
        _mean_and_spread([run.loss for run in result.equal_time]),
        "not reached" if reached is None else f"{reached} (× {reached / steps:.2f})",
        "" if reached is None else f"× {result.timing.seconds(reached) / whole:.2f}",
        f"× {result.timing.seconds(steps) / whole:.2f} ({result.timing.steady / baseline.timing.steady:.2f})",
        f"{result.finals[0].state_bytes_per_parameter:.2f}",
    ]


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
        _rate(result.lr),
        f"{_rate(low)} – {_rate(high)}",
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
    return markdown(["tuning loss at lr", *map(_rate, rates)], rows)


def draw(results: Mapping[str, Result], path: Path, title: str) -> Path:
    """Evaluation loss against the step, of the arms that reached the end."""
    curves = {
        f"{name}, lr {_rate(result.lr)}": [run.curve for run in result.finals]
        for name, result in results.items()
        if all(math.isfinite(run.loss) for run in result.finals)
    }
    return plot_arms(curves, path, title)


def _mean_and_spread(numbers: Sequence[float], digits: int = 3) -> str:
    if not numbers:
        return ""
    if not all(map(math.isfinite, numbers)):
        return "diverged"
    return f"{statistics.mean(numbers):.{digits}f} ± {(max(numbers) - min(numbers)) / 2:.{digits}f}"


def _loss(loss: float) -> str:
    return f"{loss:.3f}" if math.isfinite(loss) else "diverged"


def _rate(lr: float) -> str:
    mantissa, exponent = f"{lr:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"
