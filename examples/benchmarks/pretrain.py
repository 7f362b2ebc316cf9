"""AdamW, AdaFisherW in its structures, and published peers: a small Llama trained from scratch on BBC News.

    python examples/benchmarks/pretrain.py --out runs/bench-pretrain

Every arm has the same schedule, clipping and weight decay. Its learning rate is chosen with one seed on a tuning split;
the table is about other seeds and the evaluation split, at equal steps, at equal time, and by how short a schedule may
be to reach AdamW's final loss. Finished runs are kept in OUT/runs.json. The clock runs in a stage of its own, in which
the arms take turns step by step; let the machine be idle then.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from benchmarks.harness.arms import ADAMW, Arm, adafisherw, muon, soap
from benchmarks.harness.journal import Journal
from benchmarks.harness.problem import NewsProblem, Problem, Split
from benchmarks.harness.report import Result, draw, results_table, tuning_table
from benchmarks.harness.runner import Run, setting, train
from benchmarks.harness.timing import Timing, time_arms
from benchmarks.harness.tuning import best, tune
from errors import plain_errors

KRONECKER = {"structure": "kronecker"}
ARMS = (
    ADAMW,
    Arm("AdaFisherW", adafisherw),
    Arm("AdaFisherW, kronecker", adafisherw, KRONECKER),
    Arm("AdaFisherW, kronecker, rotated", adafisherw, {**KRONECKER, "second_moment": "rotated"}),
    Arm("SOAP", soap, {"max_precondition_dim": 1024}),
    Arm("Muon", muon),
    Arm("AdaFisherW, reference", adafisherw, {"mode": "reference"}),
)
TUNING_SEED = 0
SHARES = (0.25, 0.33, 0.5, 0.67, 0.8)  # of the steps: the schedules that are tried for the baseline's loss


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    results = Benchmark(NewsProblem(), ARMS, args.steps, args.seeds, args.out).measure(not args.skip_equal_time)
    picture = draw(results, args.out / "loss_curves.png", f"Llama, 1.3 M parameters, BBC News, {args.steps} steps")
    report = f"{results_table(results, ADAMW.name, args.steps)}\n\n{tuning_table(results)}\n"
    (args.out / "table.md").write_text(report)
    print(f"\n{report}\nruns: {args.out / 'runs.json'}\nloss curves: {picture}")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of a run (default 300)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds at the best learning rate (default 3)")
    parser.add_argument("--threads", type=int, help="threads that torch uses (default: its own choice)")
    parser.add_argument("--skip_equal_time", action="store_true", help="leave out the runs of equal time")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-pretrain"), help="folder for runs and report")
    return parser


class Benchmark:
    """The stages: tune, equal steps, shorter schedules, the clock, equal time. The first arm is the baseline."""

    def __init__(self, problem: Problem, arms: Sequence[Arm], steps: int, seeds: int, out: Path):
        self.problem, self.arms, self.steps, self.out = problem, arms, steps, out
        self.seeds = range(TUNING_SEED + 1, TUNING_SEED + 1 + seeds)
        self.journal = Journal(out / "runs.json")

    def measure(self, equal_time: bool = True) -> dict[str, Result]:
        results = {arm.name: Result(tune(partial(self._tuning_loss, arm))) for arm in self.arms}
        baseline = results[self.arms[0].name]
        for arm in self.arms:
            results[arm.name].finals = self._runs(arm, results[arm.name].lr, self.steps)
        for arm in self.arms[1:]:
            results[arm.name].steps_to_baseline = self._steps_to(baseline.mean_loss, arm, results[arm.name])
        timings = self._timings(results)
        budget = timings[self.arms[0].name].seconds(self.steps)
        for arm in self.arms:
            result = results[arm.name]
            result.timing = timings[arm.name]
            if arm is self.arms[0]:
                result.equal_time = result.finals
            elif equal_time and result.mean_loss <= baseline.mean_loss:  # the others are behind already
                result.equal_time = self._runs(arm, result.lr, result.timing.steps_within(budget))
        return results

    def _tuning_loss(self, arm: Arm, lr: float) -> float:
        return self._run(arm, lr, TUNING_SEED, self.steps, "tune").loss

    def _runs(self, arm: Arm, lr: float, steps: int) -> list[Run]:
        return [self._run(arm, lr, seed, steps, "eval") for seed in self.seeds]

    def _steps_to(self, loss: float, arm: Arm, result: Result) -> int | None:
        """The shortest schedule that ends at or below a loss, over all seeds; None where the full one does not."""
        if result.mean_loss > loss:
            return None
        for share in SHARES:
            steps = round(share * self.steps)
            if sum(run.loss for run in self._runs(arm, result.lr, steps)) / len(self.seeds) <= loss:
                return steps
        return self.steps

    def _run(self, arm: Arm, lr: float, seed: int, steps: int, split: Split) -> Run:
        what = setting(self.problem, arm, lr=lr, seed=seed, steps=steps, split=split)
        run = partial(train, self.problem, arm, lr=lr, seed=seed, steps=steps, split=split)
        done = self.journal.run_once(what, run)
        print(f"{split}  {arm.name:30} lr {lr:<7g} seed {seed}  {steps} steps  loss {done.loss:.4f}", flush=True)
        return done

    def _timings(self, results: dict[str, Result]) -> dict[str, Timing]:
        rates = {arm.name: best(results[arm.name].tuning) for arm in self.arms}
        return time_arms(self.problem, self.arms, rates, self.out / "timing.json")


if __name__ == "__main__":
    with plain_errors():
        main()
