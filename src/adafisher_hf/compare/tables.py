"""The tables of a comparison, in Markdown that is a table on a terminal as well; five columns at most."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from .arms import shown
from .estimate import Estimate
from .results import Comparison, Standing

MIB, MINUTE = 2**20, 60.0
DIGITS = 4  # significant ones


def quality_table(comparison: Comparison) -> str:
    """An arm a row: how good it is."""
    steps = comparison.steps()
    end = f"after {steps[0]} steps" if len(steps) == 1 else "at the end"
    in_time = f"{comparison.metric.name} in the baseline's time"
    header = ["arm", "lr", f"{comparison.reported} {end}", "less the baseline's", in_time]
    return markdown(header, [_quality(comparison, standing) for standing in comparison.standings])


def cost_table(comparison: Comparison) -> str:
    """An arm a row: what it takes."""
    reached = f"steps to the baseline's {comparison.metric.name}"
    header = ["arm", reached, "training time", "state bytes / parameter", "peak memory"]
    return markdown(header, [_cost(comparison, standing) for standing in comparison.standings])


def tries_table(comparison: Comparison) -> str:
    """An arm a row: what it was chosen from."""
    rows = [[str(standing.arm), _tries(comparison, standing)] for standing in comparison.standings]
    return markdown(["arm", f"{comparison.metric.name} at each learning rate"], rows)


def failures_table(comparison: Comparison) -> str:
    """A failed run a row; nothing if there is none."""
    rows = [[str(job), _in_cell(str(run.error)), str(run.log)] for job, run in comparison.failed().items()]
    return markdown(["what failed", "error", "log"], rows) if rows else ""


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def digits_of(estimate: Estimate | None) -> int:
    """How many decimals a metric is written with."""
    if estimate is None or not math.isfinite(estimate.mean) or estimate.mean == 0:
        return DIGITS - 1
    return min(max(DIGITS - 1 - math.floor(math.log10(abs(estimate.mean))), 0), 2 * DIGITS)


def _quality(comparison: Comparison, standing: Standing) -> list[str]:
    digits = digits_of(comparison.final(comparison.baseline))
    difference = None if standing is comparison.baseline else comparison.difference(standing)
    return [
        str(standing.arm),
        _rate(standing),
        _shown(comparison.final(standing), digits),
        "" if difference is None else difference.shown(digits, signed=True) + " *" * difference.counts,
        _shown(comparison.at_baseline_time(standing), digits),
    ]


def _shown(estimate: Estimate | None, digits: int) -> str:
    return "" if estimate is None else estimate.shown(digits)


def _cost(comparison: Comparison, standing: Standing) -> list[str]:
    runs = standing.finals.values()
    if not runs:
        return [str(standing.arm), "", "", "", ""]
    state = statistics.mean(run.record.state_bytes_per_parameter for run in runs)
    peak = max(run.peak_bytes for run in runs)
    return [
        str(standing.arm),
        _steps(comparison, standing),
        _time(comparison, standing),
        f"{state:.2f}",
        f"{peak / MIB:,.0f} MiB",
    ]


def _time(comparison: Comparison, standing: Standing) -> str:
    seconds, theirs = comparison.seconds(standing), comparison.seconds(comparison.baseline)
    ratio = "" if math.isnan(theirs) else f"× {seconds / theirs:.2f}, "
    return f"{ratio}{seconds:.1f} s" if seconds < MINUTE else f"{ratio}{seconds / MINUTE:.1f} min"


def _steps(comparison: Comparison, standing: Standing) -> str:
    end = max(run.record.steps for run in standing.finals.values())
    if standing is comparison.baseline:
        return f"{end}"
    reached = comparison.steps_to_baseline(standing)
    if reached is None:
        return "not reached" if comparison.baseline.finals else ""
    return f"{reached} of {end}"


def _rate(standing: Standing) -> str:
    if standing.lr is not None:
        return shown(standing.lr)
    return "failed" if standing.tried else "not run"


def _tries(comparison: Comparison, standing: Standing) -> str:
    digits = digits_of(comparison.final(comparison.baseline))
    return ", ".join(f"{shown(lr)}: {_try(comparison, standing, lr, digits)}" for lr in sorted(standing.arm.rates))


def _try(comparison: Comparison, standing: Standing, lr: float, digits: int) -> str:
    run = standing.tried.get(lr)
    if run is None:
        return "not run"
    value = run.record.last(comparison.metric.name)
    if value is None:
        return "failed"
    return f"{value:.{digits}f}" if math.isfinite(value) else "diverged"


def _in_cell(text: str) -> str:
    return text.replace("|", r"\|")
