"""The tables of a benchmark of fine-tuning: those of a task, and one over all tasks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from tables import markdown

from .arms import rate
from .rankings import Standings, mean, measured, paired, reached, shown
from .runner import Run
from .standing import Standing
from .tasks import Metric, Task

METRICS: dict[Metric, str] = {"accuracy": "accuracy, %", "f1": "macro F1, %", "exact": "exact match, %"}


def quality_table(task: Task, standings: Standings, baseline: str) -> str:
    """Markdown: an arm a row, by how well it learns."""
    metric = measure(task.metric)
    header = [
        "arm",
        "lr" + (", r" if "ratio" in task.coordinates else ""),
        "loss",
        f"less {baseline}'s",
        METRICS[task.metric],
    ]
    rows = [
        [
            name,
            _setting(task, standing),
            mean([run.loss for run in standing.finals]),
            "" if name == baseline else shown(paired(standing.finals, standings[baseline].finals, _loss)),
            mean(_numbers(standing.finals, metric), 1),
        ]
        for name, standing in standings.items()
    ]
    return markdown(header, rows)


def cost_table(task: Task, standings: Standings, baseline: str) -> str:
    """Markdown: an arm a row, by how sure it is and what it takes."""
    header = ["arm", "calibration error, %", f"steps to {baseline}'s loss", "time a step", "state bytes / parameter"]
    rows = [
        [
            name,
            mean(_numbers(standing.finals, measure("calibration")), 1),
            reached(standings, name, baseline, task.steps),
            _pace(standing, standings[baseline]),
            f"{standing.finals[0].state_bytes_per_parameter:.2f}" if standing.finals else "",
        ]
        for name, standing in standings.items()
    ]
    return measured(header, rows)


def overall_table(tasks: Mapping[str, tuple[Task, Standings]], baseline: str) -> str:
    """Markdown: an arm a row, over all tasks that it was in.

    The rank is by loss among the arms of a task; better and worse: than the baseline by more than twice the standard
    error of the difference.
    """
    arms = list(dict.fromkeys(name for _, standings in tasks.values() for name in standings))
    header = ["arm", "mean rank", "better", "worse", f"mean loss less {baseline}'s"]
    return markdown(header, [[name, *_overall(name, tasks, baseline)] for name in arms])


def _overall(name: str, tasks: Mapping[str, tuple[Task, Standings]], baseline: str) -> list[str]:
    ranks, gains = [], []
    for _, standings in tasks.values():
        if name in standings and all(standing.finals for standing in standings.values()):
            ranks.append(1 + sum(other.mean_loss < standings[name].mean_loss for other in standings.values()))
            gains.append(paired(standings[name].finals, standings[baseline].finals, _loss))
    found = [gain for gain in gains if gain is not None and math.isfinite(gain.mean)]
    if not found:
        return [""] * 4
    better = sum(gain.counts() and gain.mean < 0 for gain in found)
    worse = sum(gain.counts() and gain.mean > 0 for gain in found) + len(gains) - len(found)
    if name == baseline:
        return [f"{statistics.mean(ranks):.1f}", "", "", ""]
    of = f" of {len(gains)}"
    average = f"{statistics.mean(gain.mean for gain in found):+.3f}"
    return [f"{statistics.mean(ranks):.1f}", f"{better}{of}", f"{worse}{of}", average]


def measure(name: str) -> Callable[[Run], float | None]:
    """A number of a run, in percent."""

    def in_percent(run: Run) -> float | None:
        value: float | None = getattr(run, name)
        return None if value is None else 100 * value

    return in_percent


def _setting(task: Task, standing: Standing) -> str:
    point = standing.point
    return f"{rate(point.lr)}, {point.ratio:g}" if "ratio" in task.coordinates else rate(point.lr)


def _pace(standing: Standing, baseline: Standing) -> str:
    if standing.timing is None or baseline.timing is None:
        return ""
    return f"× {standing.timing.steady / baseline.timing.steady:.2f}"


def _numbers(runs: Sequence[Run], number: Callable[[Run], float | None]) -> list[float]:
    return [value for value in map(number, runs) if value is not None]


def _loss(run: Run) -> float:
    return run.loss
