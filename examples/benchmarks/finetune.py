"""AdaFisherW, AdamW and published peers where people fine-tune: seven kinds of text and images, whole models and LoRA.

    python examples/benchmarks/finetune.py --jobs 2 --out runs/bench-finetune
    python examples/benchmarks/finetune.py --tasks sentences-lora --arms AdamW "AdaFisherW, pair" --stage equal

Every arm tunes its learning rate on the same ladder, with one seed on a tuning split; steps, schedule, clipping, weight
decay, data order and initial weights are the same. The tables are about other seeds and the evaluation split. Finished
runs are kept in OUT/TASK/runs.json, so every stage goes on where it was stopped. The stage clock takes turns in one
process; let the machine be idle then.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from benchmarks.harness.contest import Contest
from benchmarks.harness.finetuners import BASELINE
from benchmarks.harness.rankings import Standings, draw
from benchmarks.harness.report import cost_table, overall_table, quality_table, tuning_table
from benchmarks.harness.tasks import TASKS, Task
from data.text import show_progress
from errors import InputError, plain_errors

STAGES = ("tune", "equal", "final", "clock", "report")
NOTE = (
    "Mean ± standard error over the seeds. Differences are taken seed by seed; * more than twice their standard error. "
    "The time is of a step after the dense warm-up, taken by turns, as a multiple of the baseline's."
)


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    torch.set_flush_denormal(True)  # a learning rate that saturates a network would halve the pace of its CPU kernels
    show_progress(False)
    unknown = set(args.arms or ()) - {arm.name for name in args.tasks for arm in TASKS[name].arms}
    if unknown:
        raise InputError(f"--arms: no task has {', '.join(sorted(unknown))}")
    found: dict[str, tuple[Task, Standings]] = {}
    for name in args.tasks:
        standings = contest(name, args).measure(args.stage)
        if standings:
            found[name] = TASKS[name], standings
            draw(standings, args.out / name / "loss_curves.png", TASKS[name].title)
    report = "\n\n".join([*(describe(task, standings) for task, standings in found.values()), overall(found), NOTE])
    (args.out / "table.md").write_text(f"{report}\n")
    print(f"\n{report}\n\nkept in {args.out}")


def contest(name: str, args: argparse.Namespace) -> Contest:
    task = TASKS[name]
    return Contest(
        task.problem,
        [arm for arm in task.arms if args.arms is None or arm.name in args.arms],
        (BASELINE,),
        task.steps,
        args.seeds,
        args.out / name,
        coordinates=task.coordinates,
        processes=args.jobs,
    )


def describe(task: Task, standings: Standings) -> str:
    """The tables of a task."""
    parts = [f"### {task.title}: {task.steps} steps"]
    if BASELINE in standings and standings[BASELINE].finals:
        parts += [quality_table(task, standings, BASELINE), cost_table(task, standings, BASELINE)]
    return "\n\n".join([*parts, tuning_table(standings)])


def overall(found: dict[str, tuple[Task, Standings]]) -> str:
    """A table over the tasks with adapters, and one over the others."""
    parts = []
    for title, adapters in (("LoRA", True), ("Whole models", False)):
        tasks = {
            name: (task, standings)
            for name, (task, standings) in found.items()
            if task.adapters == adapters and BASELINE in standings and standings[BASELINE].finals
        }
        if tasks:
            parts.append(f"### {title}: {len(tasks)} tasks\n\n{overall_table(tasks, BASELINE)}")
    return "\n\n".join(parts)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=" ".join(TASKS))
    made.add_argument("--arms", nargs="+", metavar="ARM", help="names of arms (default: all of a task)")
    made.add_argument("--stage", choices=STAGES, default="final", help="how far to go (default: final)")
    made.add_argument("--seeds", type=int, default=3, help="seeds on the evaluation split (default 3)")
    made.add_argument("--jobs", type=int, default=1, help="runs at a time, in processes of one thread (default 1)")
    made.add_argument("--out", type=Path, default=Path("runs/bench-finetune"), help="folder for runs and report")
    return made


if __name__ == "__main__":
    with plain_errors():
        main()
