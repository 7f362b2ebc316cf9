"""The table and the picture of a benchmark."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plotting import plot_arms

from .runner import Run
from .tuning import GRID, best


@dataclass(frozen=True)
class Result:
    """An arm: its losses on the tuning split by learning rate, and its runs at the best one, a run a seed."""

    tuning: dict[float, float]
    finals: Sequence[Run]

    @property
    def lr(self) -> float:
        return best(self.tuning)


def results_table(results: Mapping[str, Result], baseline: str) -> str:
    """Markdown: an arm a row. The spread is half the distance between the best and the worst seed."""
    header = ["arm", "best lr", "eval loss", "step time", "state bytes / parameter"]
    rows = [
        [
            name,
            _rate(result.lr) + ("" if result.lr in GRID else " *"),
            _mean_and_spread([run.loss for run in result.finals]),
            f"× {_time_ratio(result, results[baseline]):.2f}",
            f"{result.finals[0].state_bytes_per_parameter:.2f}",
        ]
        for name, result in results.items()
    ]
    seeds = len(results[baseline].finals)
    note = f"Mean ± half range over {seeds} seeds; step time relative to {baseline}, median over the seeds."
    if any(result.lr not in GRID for result in results.values()):
        note += f" * beyond the common grid {', '.join(map(_rate, GRID))}, which grows while the best is on its edge."
    return f"{_markdown(header, rows)}\n\n{note}"


def tuning_table(results: Mapping[str, Result]) -> str:
    """Markdown: the loss on the tuning split of every arm at every learning rate that was tried."""
    rates = sorted({lr for result in results.values() for lr in result.tuning})
    rows = [
        [name, *(_loss(result.tuning[lr]) if lr in result.tuning else "" for lr in rates)]
        for name, result in results.items()
    ]
    return _markdown(["tuning loss at lr", *map(_rate, rates)], rows)


def draw(results: Mapping[str, Result], path: Path, title: str) -> Path:
    """Evaluation loss against the step, of the arms that reached the end."""
    curves = {
        f"{name}, lr {_rate(result.lr)}": [run.curve for run in result.finals]
        for name, result in results.items()
        if all(math.isfinite(run.loss) for run in result.finals)
    }
    return plot_arms(curves, path, title)


def _time_ratio(result: Result, baseline: Result) -> float:
    # Seed by seed: the runs of one seed follow each other, so a machine that slows down slows both.
    pairs = zip(result.finals, baseline.finals, strict=True)
    return statistics.median(run.step_ms / base.step_ms for run, base in pairs)


def _mean_and_spread(losses: Sequence[float]) -> str:
    if not all(map(math.isfinite, losses)):
        return "diverged"
    return f"{statistics.mean(losses):.3f} ± {(max(losses) - min(losses)) / 2:.3f}"


def _loss(loss: float) -> str:
    return f"{loss:.3f}" if math.isfinite(loss) else "diverged"


def _rate(lr: float) -> str:
    mantissa, exponent = f"{lr:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
