"""AdaFisherW in its three modes beside AdamW, on a small Llama trained from scratch on BBC News.

    python examples/benchmarks/clm.py --out runs/bench-clm

Every arm has the same steps, schedule, clipping and weight decay. Its learning rate is chosen with one seed on a
tuning split; the table is about other seeds and the evaluation split. Finished runs are kept in OUT/runs.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from benchmarks.harness.arms import ADAMW, Arm, adafisherw
from benchmarks.harness.journal import Journal
from benchmarks.harness.problem import NewsProblem, Problem, Split
from benchmarks.harness.report import Result, draw, results_table, tuning_table
from benchmarks.harness.runner import Run, setting, train
from benchmarks.harness.tuning import best, tune
from errors import plain_errors

ARMS = (
    ADAMW,
    Arm("AdaFisherW", adafisherw),
    Arm("AdaFisherW, paper", adafisherw, {"mode": "paper"}),
    Arm("AdaFisherW, reference", adafisherw, {"mode": "reference"}),
)
TUNING_SEED = 0


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    results = measure(NewsProblem(), ARMS, args.steps, args.seeds, Journal(args.out / "runs.json"))
    picture = draw(results, args.out / "loss_curves.png", f"Llama, 1.3 M parameters, BBC News, {args.steps} steps")
    report = f"{results_table(results, baseline=ADAMW.name)}\n\n{tuning_table(results)}\n"
    (args.out / "table.md").write_text(report)
    print(f"\n{report}\nruns: {args.out / 'runs.json'}\nloss curves: {picture}")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a run (default 300)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds at the best learning rate (default 3)")
    parser.add_argument("--threads", type=int, help="threads that torch uses (default: its own choice)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-clm"), help="folder for the runs and the report")
    return parser


def measure(problem: Problem, arms: Sequence[Arm], steps: int, seeds: int, journal: Journal) -> dict[str, Result]:
    """Tunes every arm, then runs each at its best learning rate with fresh seeds."""

    def run(arm: Arm, lr: float, seed: int, split: Split) -> Run:
        what = setting(problem, arm, lr=lr, seed=seed, steps=steps, split=split)
        done = journal.run_once(what, lambda: train(problem, arm, lr=lr, seed=seed, steps=steps, split=split))
        name = f"{split}  {arm.name:24} lr {lr:<7g} seed {seed}"
        print(f"{name}  loss {done.loss:.4f}  {done.step_ms:.0f} ms/step", flush=True)
        return done

    def tuning_loss(arm: Arm, lr: float) -> float:
        return run(arm, lr, TUNING_SEED, "tune").loss

    tuned = {arm.name: tune(partial(tuning_loss, arm)) for arm in arms}
    finals: dict[str, list[Run]] = {arm.name: [] for arm in arms}
    for seed in range(TUNING_SEED + 1, TUNING_SEED + 1 + seeds):
        for arm in arms:
            finals[arm.name].append(run(arm, best(tuned[arm.name]), seed, "eval"))
    return {name: Result(tuned[name], finals[name]) for name in tuned}


if __name__ == "__main__":
    with plain_errors():
        main()
