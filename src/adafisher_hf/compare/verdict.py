"""One sentence: whether to change, and how sure that is."""

from __future__ import annotations

import math

from .arms import shown
from .estimate import ERRORS, Estimate
from .results import Comparison, Standing
from .tables import digits_of

ENOUGH = 3  # seeds, for a spread that deserves the name
MORE_SEEDS = f"--seeds {ENOUGH + 1} or more makes {ENOUGH} pairs of runs"


def verdict(comparison: Comparison) -> str:
    """What the reported metric says; it may be to stay with the baseline."""
    baseline, name = comparison.baseline, comparison.baseline.arm
    final = comparison.final(baseline)
    if final is None or not math.isfinite(final.mean):
        return f"No verdict: the baseline, {name}, has no finished run to compare with."
    gains = [(standing, gain) for standing, gain in _gains(comparison) if math.isfinite(gain.mean)]
    if not gains:
        return f"No verdict: beside the baseline, {name}, nothing came to its end."
    sure = [(standing, gain) for standing, gain in gains if gain.counts and gain.mean > 0]
    best, gain = max(sure or gains, key=lambda pair: pair[1].mean)
    if sure:
        return _change(comparison, best, gain)
    return _of_one_seed(comparison, best, gain) if gain.seeds == 1 else _stay(comparison, best, gain)


def _gains(comparison: Comparison) -> list[tuple[Standing, Estimate]]:
    found = ((standing, comparison.gain(standing)) for standing in comparison.standings[1:])
    return [(standing, gain) for standing, gain in found if gain is not None]


def _of_one_seed(comparison: Comparison, best: Standing, gain: Estimate) -> str:
    name = comparison.baseline.arm
    ahead = "" if gain.mean > 0 else f"Nothing is better than {name}: "
    return (
        f"{ahead}{_setting(best)} ends with {comparison.reported} {_by(comparison, gain)} than {name}; "
        f"but one seed is no evidence ({MORE_SEEDS})."
    )


def _stay(comparison: Comparison, best: Standing, gain: Estimate) -> str:
    return (
        f"Stay with {_setting(comparison.baseline)}: no arm is better by more than {ERRORS} standard errors "
        f"(the best of them, {best.arm}, ends with {comparison.reported} {_by(comparison, gain)}, over {_seeds(gain)})."
    )


def _change(comparison: Comparison, best: Standing, gain: Estimate) -> str:
    return (
        f"Take {_setting(best)}: its {comparison.reported} is {_by(comparison, gain)} than that of "
        f"{comparison.baseline.arm}, more than {ERRORS} standard errors over {_seeds(gain)}"
        f"{_in_time(comparison, best)}{_of_baseline(comparison.baseline)}."
    )


def _in_time(comparison: Comparison, best: Standing) -> str:
    """A warning for one whose lead is gone by the clock."""
    in_time, theirs = comparison.at_baseline_time(best), comparison.at_baseline_time(comparison.baseline)
    cost = comparison.metric.cost
    if in_time is None or theirs is None or cost(in_time.mean) <= cost(theirs.mean):
        return ""
    return f"; in the time that {comparison.baseline.arm} takes it is behind, though"


def _of_baseline(baseline: Standing) -> str:
    """A warning where the baseline might have done better with another learning rate."""
    if baseline.edge is None:
        return ""
    return f"; but {baseline.arm} was best at the {baseline.edge} of its learning rates: give it more of them first"


def _setting(standing: Standing) -> str:
    return f"{standing.arm} at lr {shown(standing.lr)}" if standing.lr is not None else str(standing.arm)


def _by(comparison: Comparison, gain: Estimate) -> str:
    """By how much it is better, or worse."""
    digits = digits_of(comparison.final(comparison.baseline))
    higher = (gain.mean > 0) == comparison.metric.greater_is_better
    return f"{gain._replace(mean=abs(gain.mean)).shown(digits)} {'higher' if higher else 'lower'}"


def _seeds(gain: Estimate) -> str:
    return f"{gain.seeds} seeds" if gain.seeds >= ENOUGH else f"{gain.seeds} seeds, which is few"
