"""The tables and the picture of a benchmark that trains from scratch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

from plotting import plot_arms
from tables import markdown

from .arms import beta, rate
from .runner import Run
from .standing import Estimate, Standing, difference, estimate

Standings = Mapping[str, Standing]


def quality_table(standings: Standings, baseline: str, rival: str, steps: int) -> str:
    """Markdown: an arm a row, by how well it learns."""
    header = ["arm", "lr, β, r", f"loss at {steps} steps", f"less {rival}'s", f"loss at {baseline}'s time"]
    rows = [
        [
            name,
            str(standing.point),
            mean(_losses(standing.finals)),
            _less(standings, name, rival, _loss),
            mean(_losses(standing.equal_time)),
        ]
        for name, standing in standings.items()
    ]
    return measured(header, rows)


def rivals_table(standings: Standings, ours: str) -> str:
    """Markdown: how far one arm is from every other."""
    rows = [
        [
            name,
            shown(paired(standings[ours].finals, standing.finals, _loss)),
            shown(paired(standings[ours].equal_time, standing.equal_time, _loss)),
        ]
        for name, standing in standings.items()
        if name != ours
    ]
    return markdown([f"{ours}, less that of", "loss at equal steps", "loss at equal time"], rows)


def second_table(standings: Standings, rival: str) -> str:
    """Markdown: accuracy, or the loss on shifted text, of problems that have one; else nothing."""
    for title, measure, digits in (
        ("accuracy, %", lambda run: None if run.accuracy is None else 100 * run.accuracy, 1),
        ("loss on text of another kind", lambda run: run.shifted, 3),
    ):
        if any(measure(run) is not None for standing in standings.values() for run in standing.finals):
            rows = [
                [
                    name,
                    mean(_numbers(standing.finals, measure), digits),
                    _less(standings, name, rival, measure, digits),
                ]
                for name, standing in standings.items()
            ]
            return markdown(["arm", title, f"less {rival}'s"], rows)
    return ""


def cost_table(standings: Standings, baseline: str, rival: str, steps: int) -> str:
    """Markdown: an arm a row, by what it takes."""
    header = [
        "arm",
        f"steps (and time) to {baseline}'s loss",
        f"to {rival}'s",
        f"time a step, {baseline}'s; {rival}'s = 1",
        "state bytes / parameter",
    ]
    rows = [
        [
            name,
            *(reached(standings, name, other, steps) for other in (baseline, rival)),
            "; ".join(filter(None, (_pace(standings, name, other, steps) for other in (baseline, rival)))),
            f"{standing.finals[0].state_bytes_per_parameter:.2f}" if standing.finals else "",
        ]
        for name, standing in standings.items()
    ]
    return measured(header, rows)


def tuning_table(standings: Standings) -> str:
    """Markdown: the best tuning loss at every value that was tried of a number, if anyone tried more than one."""
    numbers = [number for number in _SHOWN if any(_is_varied(standing, number) for standing in standings.values())]
    rows = [[name, *(_by_value(standing, number) for number in numbers)] for name, standing in standings.items()]
    return markdown(["best tuning loss", *(_SHOWN[number].title for number in numbers)], rows)


def draw(standings: Standings, path: Path, title: str) -> Path:
    """Evaluation loss against the step, of the arms that reached the end."""
    curves = {
        f"{name} ({standing.point})": [run.curve for run in standing.finals]
        for name, standing in standings.items()
        if standing.finals and all(math.isfinite(run.loss) for run in standing.finals)
    }
    return plot_arms(curves, path, title)


def measured(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown without the columns of stages that were not made."""
    kept = [any(column) for column in zip(*rows, strict=True)]
    return markdown(list(compress(header, kept)), [list(compress(row, kept)) for row in rows])


class _Number(NamedTuple):
    title: str
    shown: Callable[..., str]


_SHOWN = {
    "lr": _Number("at learning rate", rate),
    "momentum": _Number("at momentum β", beta),
    "ratio": _Number("at ratio r", lambda ratio: f"{ratio:g}"),
}


def _is_varied(standing: Standing, number: str) -> bool:
    return len({getattr(point, number) for point in standing.tried}) > 1


def _by_value(standing: Standing, number: str) -> str:
    losses: dict[Any, float] = {}
    for point, loss in standing.tried.items():
        value = getattr(point, number)
        losses[value] = min(loss, losses.get(value, math.inf))
    return ", ".join(f"{_SHOWN[number].shown(value)}: {_number(loss)}" for value, loss in sorted(losses.items()))


def _loss(run: Run) -> float:
    return run.loss


def _losses(runs: Sequence[Run]) -> list[float]:
    return [run.loss for run in runs]


def _numbers(runs: Sequence[Run], measure: Callable[[Run], float | None]) -> list[float]:
    """A diverged run has none; its loss says so."""
    numbers = [math.inf if run.final is None else measure(run) for run in runs]
    return [number for number in numbers if number is not None]


def mean(numbers: Sequence[float], digits: int = 3) -> str:
    """A mean with its standard error, for a cell; nothing where there are no numbers."""
    return estimate(numbers).shown(digits) if numbers else ""


def paired(runs: Sequence[Run], others: Sequence[Run], measure: Callable[[Run], float | None]) -> Estimate | None:
    """Runs less others, seed by seed; None where one of both is not known."""
    ours, theirs = _numbers(runs, measure), _numbers(others, measure)
    return difference(ours, theirs) if ours and len(ours) == len(theirs) else None


def _less(standings: Standings, name: str, rival: str, measure: Callable[[Run], float | None], digits: int = 3) -> str:
    if name == rival or rival not in standings:
        return ""
    return shown(paired(standings[name].finals, standings[rival].finals, measure), digits)


def shown(between: Estimate | None, digits: int = 3) -> str:
    """A difference for a cell, with a star where it counts."""
    if between is None:
        return ""
    return between.shown(digits, signed=True) + (" *" if between.counts() else "")


def reached(standings: Standings, name: str, other: str, steps: int) -> str:
    """For a cell: the shortest schedule that ends at another arm's loss, and its time where it is known."""
    standing, rival = standings[name], standings.get(other)
    if rival is None or not (name == other or other in standing.steps_to):
        return ""
    reached = steps if name == other else standing.steps_to[other]
    if reached is None:
        return "not reached"
    share = f"{reached} (× {reached / steps:.2f}"
    if standing.timing is None or rival.timing is None:
        return f"{share})"
    return f"{share}, time × {standing.timing.seconds(reached) / rival.timing.seconds(steps):.2f})"


def _pace(standings: Standings, name: str, other: str, steps: int) -> str:
    """Of the whole run; in brackets that of a step after the dense warm-up."""
    timing, rival = standings[name].timing, standings[other].timing if other in standings else None
    if timing is None or rival is None:
        return ""
    return f"{timing.seconds(steps) / rival.seconds(steps):.2f} ({timing.steady / rival.steady:.2f})"


def _number(loss: float) -> str:
    return f"{loss:.3f}" if math.isfinite(loss) else "diverged"
