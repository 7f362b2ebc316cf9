"""The family in one table: AdaFisher in every mode and structure, its relatives, and the usual baselines.

    python examples/benchmarks/family.py --jobs 2
    python examples/benchmarks/family.py --jobs 2 --runs runs/bench-pretrain/news-128-300/runs.json
    python examples/benchmarks/family.py --jobs 2 --task sentences

The task news is that of the pretraining benchmark, from scratch, with its ladders, coordinates, seeds and rules
(``pretrain.py``). With --runs a first call takes over what that one has measured of the same arms. The others are of
the benchmark of fine-tuning (``finetune.py``), where an arm tunes its learning rate. Finished runs are
kept, a folder of OUT for each task, so every stage goes on where it was stopped; the clock wants the machine to itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from benchmarks.harness import report
from benchmarks.harness.catalogue import WIDTHS, make_problem, title_of
from benchmarks.harness.contest import STAGES, Contest
from benchmarks.harness.contestants import ADAMW, MUON
from benchmarks.harness.rankings import Standings, cost_table, draw, quality_table, tuning_table
from benchmarks.harness.relatives import fine_tuning, relatives
from benchmarks.harness.tasks import TASKS, Task
from data.text import show_progress
from errors import InputError, plain_errors

PROBLEM = "news"
STEPS = 300
BATCH_SIZE = 16  # sequences, of that problem
FINE_TUNING = ("digits", "digits-lora", "sentences")
Describe = Callable[[Standings, int], list[str]]
RIVALS = (ADAMW.name, MUON.name)
NOTE = (
    "Mean ± standard error over {seeds} seeds. Differences are taken seed by seed; * more than twice their standard "
    "error. AdamQLR's lr is the largest that it may choose. Times are taken by turns: {times}."
)
RUNS = "of a run; in brackets those of a step after the dense warm-up"
STEADY = f"of a step after the dense warm-up, as a multiple of {ADAMW.name}'s"


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    torch.set_flush_denormal(True)  # a rate that saturates a network would halve the pace of its CPU kernels
    show_progress(False)
    contest, title, describe = from_scratch(args) if args.task == PROBLEM else fine_tuned(args, TASKS[args.task])
    standings = contest.measure(args.stage)
    if not standings:
        raise InputError(f"{contest.out}: no arm is tuned yet")
    draw(standings, contest.out / "loss_curves.svg", title)
    seeds = max(len(standing.finals) for standing in standings.values())
    text = "\n\n".join([f"### {title}", *describe(standings, seeds)]) + "\n"
    (contest.out / "table.md").write_text(text)
    print(f"\n{text}\nkept in {contest.out}")


def from_scratch(args: argparse.Namespace) -> tuple[Contest, str, Describe]:
    """The contest on news, its title, and what makes its tables."""
    problem, steps = make_problem(PROBLEM, args.width), args.steps or STEPS
    out = args.out / f"{PROBLEM}-{args.width or WIDTHS[PROBLEM]}-{steps}"
    if args.runs:
        take_over(args.runs, out)
    arms = [arm for arm in relatives(BATCH_SIZE) if arm.name in args.arms]
    contest = Contest(problem, arms, RIVALS, steps, args.seeds, out, processes=args.jobs)

    def describe(standings: Standings, seeds: int) -> list[str]:
        tables = quality_table(standings, *RIVALS, steps), cost_table(standings, *RIVALS, steps)
        return [*tables, NOTE.format(seeds=seeds, times=RUNS), tuning_table(standings)]

    return contest, f"The family: {title_of(PROBLEM, problem)}, {steps} steps", describe


def fine_tuned(args: argparse.Namespace, task: Task) -> tuple[Contest, str, Describe]:
    """The contest on a task of fine-tuning, its title, and what makes its tables."""
    steps = args.steps or task.steps
    arms = [arm for arm in fine_tuning(task.problem.batch_size) if arm.name in args.arms]
    out = args.out / f"{args.task}-{steps}"
    contest = Contest(
        task.problem, arms, RIVALS[:1], steps, args.seeds, out, coordinates=task.coordinates, processes=args.jobs
    )

    def describe(standings: Standings, seeds: int) -> list[str]:
        made = dataclasses.replace(task, steps=steps)
        known = RIVALS[0] in standings and bool(standings[RIVALS[0]].finals)
        tables = (report.quality_table, report.cost_table) if known else ()
        note = NOTE.format(seeds=seeds, times=STEADY)
        return [*(table(made, standings, RIVALS[0]) for table in tables), note, tuning_table(standings)]

    return contest, f"The family: {task.title}, {steps} steps", describe


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


def parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [arm.name for arm in relatives(BATCH_SIZE)]
    tasks = (PROBLEM, *FINE_TUNING)
    parser.add_argument("--task", choices=tasks, default=PROBLEM, help=f"one of {', '.join(tasks)} (default {PROBLEM})")
    parser.add_argument("--width", type=int, help=f"of the model of {PROBLEM} (default {WIDTHS[PROBLEM]})")
    parser.add_argument("--steps", type=int, help=f"of a run (default: {STEPS} of {PROBLEM}, else the task's)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the final runs (default 3)")
    parser.add_argument("--arms", nargs="+", choices=names, default=names, metavar="ARM", help=f"of {', '.join(names)}")
    parser.add_argument("--stage", choices=STAGES, default="race", help="with what it needs; report: no runs at all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, in processes of one thread (default 1)")
    parser.add_argument(
        "--runs", type=Path, help=f"a runs.json of the pretraining benchmark, for {PROBLEM} to begin with"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench-family"), help="folder for runs and reports")
    return parser


if __name__ == "__main__":
    with plain_errors():
        main()
