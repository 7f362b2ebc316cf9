"""How lora="pair" should start, while B is still zero: its damping, on several tasks, by several seeds.

    python examples/benchmarks/pair_start.py --tasks digits-lora sentences-lora --jobs 2

ε is relative to the mean diagonal of each Gram, and at least so large as that of ``LEAST`` of the other factor's: a
small LEAST lets A turn quickly while B is small. Beside them the factors by themselves, and AdamW, at the same learning
rates, on the tuning split. Finished runs are kept in OUT/TASK/runs.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from adafisher_hf.preconditioners import pair
from benchmarks.harness.arms import Arm, Groups, adafisherw, rate
from benchmarks.harness.finetuners import BASELINE, FACTORS, PAIR
from benchmarks.harness.jobs import TUNING_SEED, Job
from benchmarks.harness.journal import Journal
from benchmarks.harness.laboratory import Laboratory, Plan
from benchmarks.harness.runner import Run
from benchmarks.harness.standing import difference, estimate
from benchmarks.harness.tasks import TASKS, Task
from data.text import show_progress
from errors import plain_errors
from tables import markdown

STARTS = tuple((damping, least) for damping in (0.05, 0.2, 1.0) for least in (0.01, 0.1, 1.0))
RATES = (1e-3, 3e-3, 1e-2)


def from_start(groups: Groups, model: nn.Module, *, least: float, **knobs: Any) -> torch.optim.Optimizer:
    """With another ``LEAST``, for the rest of this process's run."""
    pair.LEAST = least
    return adafisherw(groups, model, **knobs)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = [name for name, task in TASKS.items() if task.adapters]
    parser.add_argument("--tasks", nargs="+", choices=choices, default=["digits-lora"], help="tasks")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, help="learning rates")
    parser.add_argument("--seeds", type=int, default=5, help="seeds, from 0 on (default 5)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, in processes of one thread (default 1)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-pair"), help="folder for runs and reports")
    args = parser.parse_args(argv)
    torch.set_flush_denormal(True)
    show_progress(False)
    reports = []
    for name in args.tasks:
        task = TASKS[name]
        laboratory = Laboratory(task.problem, Journal(args.out / name / "runs.json"), args.jobs)
        seeds = range(TUNING_SEED, TUNING_SEED + args.seeds)
        plans = {(arm.name, lr): _runs(arm, lr, seeds, task.steps) for arm in arms(task) for lr in args.rates}
        runs = laboratory.carry_out(
            {f"{arm} at {rate(lr)}": plan for (arm, lr), plan in plans.items()},
            name,
            len(plans) * len(seeds) * task.steps,
        )
        found = {key: runs[f"{key[0]} at {rate(key[1])}"] for key in plans}
        reports.append(f"### {task.title}, {len(seeds)} seeds of the tuning split\n\n{table(found, args.rates)}")
    report = "\n\n".join(reports)
    (args.out / "table.md").write_text(f"{report}\n")
    print(f"\n{report}")


def arms(task: Task) -> list[Arm]:
    """The baselines, and the pair with every start."""
    own = {arm.name: arm.at(arm.start) for arm in task.arms}
    starts = [
        dataclasses.replace(
            own[PAIR],
            name=f"pair, ε {damping:g}, at least of {least:g}",
            make=from_start,
            knobs={**own[PAIR].knobs, "pair_damping": damping, "least": least},
        )
        for damping, least in STARTS
    ]
    return [own[BASELINE], own[FACTORS], *starts]


def table(runs: dict[tuple[str, float], list[Run]], rates: Sequence[float]) -> str:
    """Markdown: an arm a row, with the loss at every rate, the worst seed, and the difference from AdamW's best."""
    names = list(dict.fromkeys(name for name, _ in runs))
    losses = {key: [run.loss for run in some] for key, some in runs.items()}

    def best(name: str) -> list[float]:
        return min((losses[name, lr] for lr in rates), key=lambda some: estimate(some).mean)

    rows = []
    for name in names:
        cells = [estimate(losses[name, lr]).shown() for lr in rates]
        less = "" if name == names[0] else difference(best(name), best(names[0])).shown(signed=True)
        rows.append([name, *cells, f"{max(best(name)):.3f}", less])
    return markdown(["arm", *(f"loss at {rate(lr)}" for lr in rates), "worst seed", f"less {names[0]}'s best"], rows)


def _runs(arm: Arm, lr: float, seeds: Sequence[int], steps: int) -> Plan[list[Run]]:
    return (yield [Job(arm, lr, seed, steps, "tune") for seed in seeds])


if __name__ == "__main__":
    with plain_errors():
        main()
