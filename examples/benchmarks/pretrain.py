"""AdaFisherW in its structures, AdamW and published peers from scratch, everything tuned on all sides.

    python examples/benchmarks/pretrain.py --problem news --jobs 2 --stage final
    python examples/benchmarks/pretrain.py --problem news

Every arm tunes its learning rate, its momentum and the ratio of the tables' learning rate on the same ladders, one
number after the other, with one seed on a tuning split; schedule, clipping, weight decay, data order and initial
weights are the same. The tables are about other seeds and the evaluation split: at equal steps, at equal time, and by
how short a schedule may be to reach AdamW's and Muon's final loss. Finished runs are kept in OUT/PROBLEM-WIDTH-STEPS,
so every stage goes on where it was stopped. The stage clock takes turns in one process; let the machine be idle then.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from benchmarks.harness.catalogue import WIDTHS, make_problem, title_of
from benchmarks.harness.contest import STAGES, Contest, read_points
from benchmarks.harness.contestants import ADAMW, ARMS, MUON, ORTHOGONAL
from benchmarks.harness.rankings import Standings, cost_table, draw, quality_table, rivals_table, second_table
from benchmarks.harness.rankings import tuning_table as table_of_tuning
from benchmarks.harness.tuning import COORDINATES
from data.text import show_progress
from errors import InputError, plain_errors

RIVALS = (ADAMW.name, MUON.name)


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # a rate that saturates a network would halve the pace of its CPU kernels
    show_progress(False)
    problem = make_problem(args.problem, args.width)
    out = args.out / f"{args.problem}-{args.width or WIDTHS[args.problem]}-{args.steps}"
    contest = Contest(
        problem,
        [arm for arm in ARMS if arm.name in args.arms],
        RIVALS,
        args.steps,
        args.seeds,
        out,
        starts=read_points(args.settings) if args.settings else None,
        coordinates=args.coordinates or (("lr",) if args.settings else COORDINATES),
        processes=args.jobs,
    )
    standings = contest.measure(args.stage)
    if not standings:
        raise InputError(f"{out}: no arm is tuned yet")
    title = f"{title_of(args.problem, problem)}, {args.steps} steps"
    draw(standings, out / "loss_curves.png", title)
    report = f"### {title}\n\n{describe(standings, args.steps)}\n"
    (out / "table.md").write_text(report)
    # The first table alone: the README's.
    (out / "quality.md").write_text(f"{quality_table(standings, *RIVALS, args.steps)}\n\n{note_of(standings)}\n")
    print(f"\n{report}\nkept in {out}")


def describe(standings: Standings, steps: int) -> str:
    """All tables, and what their signs mean."""
    clock = "Times are of a run, taken by turns; in brackets those of a step after the dense warm-up."
    parts = [
        quality_table(standings, *RIVALS, steps),
        rivals_table(standings, ORTHOGONAL.name),
        second_table(standings, MUON.name),
        cost_table(standings, *RIVALS, steps),
        f"{note_of(standings)} {clock}",
        table_of_tuning(standings),
    ]
    return "\n\n".join(filter(None, parts))


def note_of(standings: Standings) -> str:
    """What the signs of a table mean."""
    seeds = max(len(standing.finals) for standing in standings.values())
    return (
        f"Mean ± standard error over {seeds} seeds. Differences are taken seed by seed; * more than twice their "
        "standard error."
    )


def parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [arm.name for arm in ARMS]
    parser.add_argument("--problem", choices=WIDTHS, default="news", help="what is learned (default news)")
    parser.add_argument("--width", type=int, help="of the model (default 128; vit: 64)")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a run (default 300)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the final runs (default 3)")
    parser.add_argument("--arms", nargs="+", choices=names, default=names, metavar="ARM", help=f"of {', '.join(names)}")
    parser.add_argument("--stage", choices=STAGES, default="race", help="with what it needs; report: no runs at all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, in processes of one thread (default 1)")
    parser.add_argument("--threads", type=int, help="threads that torch uses here (default: its own choice)")
    parser.add_argument("--settings", type=Path, help="a chosen.json: start there and tune the rate alone")
    parser.add_argument("--coordinates", nargs="+", choices=dict.fromkeys(COORDINATES), help="what is tuned, in order")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-pretrain"), help="folder for runs and reports")
    return parser


if __name__ == "__main__":
    with plain_errors():
        main()
