"""What a reader of the tables has to know."""

from __future__ import annotations

from collections.abc import Iterator

from .arms import shown
from .estimate import ERRORS
from .results import Comparison
from .verdict import MORE_SEEDS

FURTHER = {"lowest": "try lower ones", "highest": "try higher ones"}


def notes(comparison: Comparison) -> list[str]:
    """One sentence or two each.

    Args:
        comparison: what the tables show.
    """
    return [
        _numbers(comparison),
        _choice(comparison),
        *_measures(comparison),
        *_grids(comparison),
        *_gaps(comparison),
    ]


def _numbers(comparison: Comparison) -> str:
    count = max((len(standing.finals) for standing in comparison.standings), default=0)
    better = f"{comparison.reported}: {comparison.metric.direction} is better."
    if count < 2:
        return f"{better} One seed: how far seeds differ is not known."
    return (
        f"{better} Mean ± standard error over {count} seeds. Differences are taken seed by seed; "
        f"* more than {ERRORS} standard errors."
    )


def _choice(comparison: Comparison) -> str:
    """What the learning rates were chosen on, and whether that is what is reported."""
    seed = ", with another seed" if comparison.is_on_other_seeds else ""
    if comparison.reported != comparison.metric.name:
        return f"Learning rates were chosen by {comparison.metric.name}{seed}; {comparison.reported} had no part in it."
    flatters = "which flatters an arm the more the more rates it had"
    return f"Learning rates were chosen on the split that is reported{seed}, {flatters}."


def _measures(comparison: Comparison) -> Iterator[str]:
    yield (
        f"The baseline is {comparison.baseline.arm}. What an arm had reached in its time is read off the arm's own "
        "curve, between two evaluations. Its schedule was made for all of its steps; one made for fewer may do better. "
        "An arm that had ended by then counts with its end."
    )
    yield (
        "Training time is without evaluations. Peak memory is the largest resident size of a run's process "
        "(the memory of a GPU is not in it)."
    )
    at_once = max((run.at_once for run in comparison.runs.values()), default=1)
    if at_once > 1:
        yield f"{at_once} runs at a time shared the machine (--jobs), so times are rough."
    steps = comparison.steps()
    if len(steps) > 1:
        yield f"The runs ended at different steps ({', '.join(map(str, steps))}): this is no comparison at equal steps."


def _grids(comparison: Comparison) -> Iterator[str]:
    for standing in comparison.standings:
        if standing.lr is not None and standing.edge is not None:
            where = f"at the {standing.edge} of its learning rates, {shown(standing.lr)}"
            yield f"{standing.arm} was best {where}: {FURTHER[standing.edge]}."
    counts = {len(standing.arm.rates) for standing in comparison.standings}
    if len(counts) > 1:
        yield "The arms had different numbers of learning rates to try: more tries, better luck."


def _gaps(comparison: Comparison) -> Iterator[str]:
    missing = comparison.missing()
    if missing:
        jobs = "; ".join(map(str, missing))
        more = "; then its best rate with the other seeds" if comparison.plan.seeds > 1 else ""
        yield f"Not made, because the budget was spent: {jobs}{more}. The same command goes on."
    if comparison.plan.seeds == 2:
        yield f"Of 2 seeds one is left when the other has chosen the learning rates: {MORE_SEEDS}."
