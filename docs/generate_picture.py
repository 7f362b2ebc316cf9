"""Draws the README's picture, light and dark, from the runs of the pretraining benchmark.

python docs/generate_picture.py
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))  # whose modules this one shares

from benchmarks.harness.catalogue import make_problem
from benchmarks.harness.contest import Contest
from benchmarks.harness.contestants import ADAMW, ARMS, MUON, ORTHOGONAL
from benchmarks.harness.standing import Standing
from plotting import DARK, LIGHT, Theme, color_of

DOCS = Path(__file__).parent
RUNS, STEPS = DOCS / "pretraining" / "news-128-300", 300
SHOWN = (ADAMW.name, MUON.name, ORTHOGONAL.name)


def main() -> None:
    contest = Contest(make_problem("news"), ARMS, (ADAMW.name, MUON.name), STEPS, 3, RUNS)
    standings = contest.measure("report")
    for theme in (LIGHT, DARK):
        figure = picture({name: standings[name] for name in SHOWN}, theme)
        figure.savefig(DOCS / "assets" / f"first-screen-{theme.name}.svg", transparent=True, metadata={"Date": None})


def picture(standings: Mapping[str, Standing], theme: Theme) -> Figure:
    """Evaluation loss by steps, and by time."""
    with rc_context({**theme.settings, "svg.hashsalt": "adafisher", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        whole = standings[ADAMW.name].timing
        assert whole is not None
        for name, standing in standings.items():
            steps, losses = means(standing)
            assert standing.timing is not None
            times = [standing.timing.seconds(step) / whole.seconds(STEPS) for step in steps]
            for axes, across in ((left, steps), (right, times)):
                axes.plot(across, losses, color=color_of(name, theme), lw=2.2, marker="o", ms=4, label=name)
        _finish(left, "optimizer steps")
        _finish(right, "time, AdamW's run = 1")
        left.set_ylabel("evaluation loss, nats a token")
        left.legend(frameon=False)
        return figure


def means(standing: Standing) -> tuple[Sequence[int], Sequence[float]]:
    """Of the seeds, at every evaluation."""
    curves = [run.curve for run in standing.finals]
    steps = [step for step, _ in curves[0]]
    return steps, [statistics.mean(curve[i][1] for curve in curves) for i in range(len(steps))]


def _finish(axes: Axes, across: str) -> None:
    axes.set_xlabel(across)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
