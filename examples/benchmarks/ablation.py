"""What each option of structure="kronecker" is worth: one change at a time, on the pretraining task's tuning split.

    python examples/benchmarks/ablation.py --out runs/bench-ablation

The defaults of the options were chosen from this table, never from the evaluation split. Finished runs are kept in
OUT/runs.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from benchmarks.harness.arms import Arm, adafisherw
from benchmarks.harness.journal import Journal
from benchmarks.harness.news import NewsProblem
from benchmarks.harness.runner import Run, setting, train
from benchmarks.harness.timing import time_arms
from errors import plain_errors
from tables import markdown

CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"token_stride": 1},
    {"token_stride": 16},
    {"update_interval": 1},
    {"update_warmup": 0},
    {"max_factor_dim": 128},
    {"max_factor_dim": 2048},
    {"basis_interval": 1},
    {"basis_interval": 50},
    {"damping": 0.1},
    {"damping": 1.0},
    {"state_dtype": "bfloat16"},
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a run (default 300)")
    parser.add_argument("--lr", type=float, default=1e-2, help="learning rate (default 1e-2, the best in pretrain.py)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds (default 0)")
    parser.add_argument("--threads", type=int, help="threads that torch uses (default: its own choice)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-ablation"), help="folder for runs and report")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    table = measure(args.steps, args.lr, args.seeds, args.out)
    (args.out / "table.md").write_text(table)
    print(f"\n{table}")


def measure(steps: int, lr: float, seeds: Sequence[int], out: Path) -> str:
    problem, journal = NewsProblem(), Journal(out / "runs.json")
    arms = [Arm(_name(change), adafisherw, {"structure": "kronecker", **change}) for change in CHANGES]
    results = [[_run(problem, journal, arm, lr, seed, steps) for seed in seeds] for arm in arms]
    clocks = time_arms(problem, arms, {arm.name: lr for arm in arms}, out / "timing.json")
    rows = []
    for arm, runs in zip(arms, results, strict=True):
        loss, base = (sum(run.loss for run in some) / len(some) for some in (runs, results[0]))
        clock, default = clocks[arm.name], clocks[arms[0].name]
        time = f"× {clock.seconds(steps) / default.seconds(steps):.2f} ({clock.steady / default.steady:.2f})"
        state = f"{runs[0].state_bytes_per_parameter:.2f}"
        rows.append([arm.name, f"{loss:.3f}", f"{loss - base:+.3f}", time, state])
    header = ["change", f"tuning loss at {steps} steps", "against the defaults", "time", "state bytes / parameter"]
    note = (
        f"lr {lr:g}, seeds {', '.join(map(str, seeds))}. Time is that of the whole run relative to the defaults, taken "
        "by turns; in brackets that of a step after the dense warm-up."
    )
    return f"{markdown(header, rows)}\n\n{note}\n"


def _name(change: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in change.items()) or "the defaults"


def _run(problem: NewsProblem, journal: Journal, arm: Arm, lr: float, seed: int, steps: int) -> Run:
    run = partial(train, problem, arm, lr=lr, seed=seed, steps=steps, split="tune")
    finished = journal.run_once(setting(problem, arm, lr=lr, seed=seed, steps=steps, split="tune"), run)
    print(f"{arm.name:24} seed {seed}  loss {finished.loss:.4f}", flush=True)
    return finished


if __name__ == "__main__":
    with plain_errors():
        main()
