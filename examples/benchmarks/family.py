"""The family in one table: AdaFisher in every mode and structure, its relatives, and the usual baselines, from scratch.

    python examples/benchmarks/family.py --jobs 2
    python examples/benchmarks/family.py --jobs 2 --runs runs/bench-pretrain/news-128-300/runs.json

The problem is news of the pretraining benchmark, with its ladders, coordinates, seeds and rules (``pretrain.py``). With
--runs a first call takes over what that one has measured of the same arms. Finished runs are kept in
OUT/news-WIDTH-STEPS, so every stage goes on where it was stopped; the clock wants the machine to itself.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from benchmarks.harness.catalogue import WIDTHS, make_problem, title_of
from benchmarks.harness.contest import STAGES, Contest
from benchmarks.harness.contestants import ADAMW, MUON
from benchmarks.harness.rankings import Standings, cost_table, draw, quality_table, tuning_table
from benchmarks.harness.relatives import relatives
from data.text import show_progress
from errors import InputError, plain_errors

PROBLEM = "news"
BATCH_SIZE = 16  # sequences, of that problem
RIVALS = (ADAMW.name, MUON.name)
NOTE = (
    "Mean ± standard error over {seeds} seeds. Differences are taken seed by seed; * more than twice their standard "
    "error. AdamQLR's lr is the largest that it may choose. Times are of a run, taken by turns; in brackets those of a "
    "step after the dense warm-up."
)


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    torch.set_flush_denormal(True)  # a rate that saturates a network would halve the pace of its CPU kernels
    show_progress(False)
    problem = make_problem(PROBLEM, args.width)
    out = args.out / f"{PROBLEM}-{args.width or WIDTHS[PROBLEM]}-{args.steps}"
    if args.runs:
        take_over(args.runs, out)
    arms = [arm for arm in relatives(BATCH_SIZE) if arm.name in args.arms]
    contest = Contest(problem, arms, RIVALS, args.steps, args.seeds, out, processes=args.jobs)
    standings = contest.measure(args.stage)
    if not standings:
        raise InputError(f"{out}: no arm is tuned yet")
    title = f"The family: {title_of(PROBLEM, problem)}, {args.steps} steps"
    draw(standings, out / "loss_curves.png", title)
    report = f"### {title}\n\n{describe(standings, args.steps)}\n"
    (out / "table.md").write_text(report)
    print(f"\n{report}\nkept in {out}")


def take_over(runs: Path, out: Path) -> None:
    """Begins with the runs of another benchmark; what is in the folder already stays as it is.

    Raises:
        InputError: there is no such file.
    """
    if not runs.is_file():
        raise InputError(f"--runs {runs}: no such file")
    if not (out / "runs.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(runs, out / "runs.json")


def describe(standings: Standings, steps: int) -> str:
    """All tables, and what their signs mean."""
    seeds = max(len(standing.finals) for standing in standings.values())
    parts = (
        quality_table(standings, *RIVALS, steps),
        cost_table(standings, *RIVALS, steps),
        NOTE.format(seeds=seeds),
        tuning_table(standings),
    )
    return "\n\n".join(parts)


def parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [arm.name for arm in relatives(BATCH_SIZE)]
    parser.add_argument("--width", type=int, help="of the model (default 128)")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a run (default 300)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the final runs (default 3)")
    parser.add_argument("--arms", nargs="+", choices=names, default=names, metavar="ARM", help=f"of {', '.join(names)}")
    parser.add_argument("--stage", choices=STAGES, default="race", help="with what it needs; report: no runs at all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, in processes of one thread (default 1)")
    parser.add_argument("--runs", type=Path, help="a runs.json of the pretraining benchmark, to begin with")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-family"), help="folder for runs and reports")
    return parser


if __name__ == "__main__":
    with plain_errors():
        main()
