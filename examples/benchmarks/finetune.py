"""AdaFisherW, AdamW and Adafactor where people fine-tune: LoRA, an encoder with a new head, a ViT, a T5.

    python examples/benchmarks/finetune.py --out runs/bench-finetune

Every arm has the same steps, schedule, clipping and weight decay, and the same five learning rates of a task. The rate
is chosen with one seed on a tuning split; the table is about other seeds and the evaluation split. Finished runs are
kept in OUT/runs.json. The clock runs in a stage of its own, in which the arms take turns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from benchmarks.harness.arms import Arm, adafactor, adafisherw, adamw, loraplus
from benchmarks.harness.finetuning import FineTuning, digits, headlines, lora, topics
from benchmarks.harness.journal import Journal
from benchmarks.harness.problem import Split
from benchmarks.harness.report import Result, finetuning_table, tuning_table
from benchmarks.harness.runner import Run, setting, train
from benchmarks.harness.timing import time_arms
from data.text import show_progress
from errors import plain_errors
from plotting import plot_rates

TUNING_SEED = 0
BASELINE = Arm("AdamW", adamw)
ARMS = (
    BASELINE,
    Arm("Adafactor", adafactor),
    Arm("AdaFisherW", adafisherw),
    Arm("AdaFisherW, kronecker", adafisherw, {"structure": "kronecker"}),
    Arm("AdaFisherW, kronecker, τ = 1", adafisherw, {"structure": "kronecker", "damping": 1.0}),
)
# The wide side of an adapter would have a factor far larger than the adapter (docs/lora.md).
LORA_ARMS = (
    *ARMS[:3],
    Arm("AdaFisherW, kronecker", adafisherw, {"structure": "kronecker", "max_factor_dim": 16}),
    Arm("LoRA+ (AdamW)", loraplus, {"ratio": 16.0}),
)
# A batch has hardly more tokens than a factor has rows: what happens if only some of them are measured?
TOPICS_ARMS = (
    *ARMS,
    Arm("AdaFisherW, kronecker, every 4th token", adafisherw, {"structure": "kronecker", "token_stride": 4}),
)


@dataclass(frozen=True)
class Task:
    """A problem, and how it is learned.

    Attributes:
        grid: learning rates, the same for all arms.
        close: nats above an arm's best tuning loss within which a learning rate counts as usable.
        timed: steps that the clock sees.
    """

    title: str
    problem: FineTuning
    steps: int
    grid: Sequence[float]
    close: float
    timed: int
    arms: Sequence[Arm] = ARMS


TASKS = {
    "lora": Task(
        "LoRA on SmolLM2-135M, BBC News",
        FineTuning("lora", lora, 2, {"block_size": 64, "evaluated": 24, "lora_r": 8}, next_token=True),
        steps=30,
        grid=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        close=0.02,
        timed=20,
        arms=LORA_ARMS,
    ),
    "topics": Task(
        "MiniLM, topics of BBC News",
        FineTuning("topics", topics, 16, {"max_length": 32}),
        steps=30,
        grid=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
        close=0.05,
        timed=20,
        arms=TOPICS_ARMS,
    ),
    "digits": Task(
        "ViT, digits",
        FineTuning("digits", digits, 64),
        steps=150,
        grid=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        close=0.05,
        timed=150,
    ),
    "headlines": Task(
        "T5, headlines of BBC News",
        FineTuning("headlines", headlines, 16),
        steps=300,
        grid=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        close=0.1,
        timed=150,
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="tasks (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds at the best learning rate (default 3)")
    parser.add_argument("--threads", type=int, help="threads that torch uses (default: its own choice)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-finetune"), help="folder for runs and report")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)  # a learning rate that saturates a network would halve the pace of its CPU kernels
    show_progress(False)
    results = {name: Benchmark(TASKS[name], args.seeds, args.out).measure() for name in args.tasks}
    report = "\n\n".join(describe(TASKS[name], result) for name, result in results.items())
    (args.out / "table.md").write_text(f"{report}\n")
    print(f"\n{report}\n\nruns: {args.out / 'runs.json'}\nlearning rates: {draw(results, args.out)}")


class Benchmark:
    """The stages of a task: tune, other seeds at the best rate, the clock."""

    def __init__(self, task: Task, seeds: int, out: Path):
        self.task, self.out = task, out
        self.seeds = range(TUNING_SEED + 1, TUNING_SEED + 1 + seeds)
        self.journal = Journal(out / "runs.json")

    def measure(self) -> dict[str, Result]:
        results = {
            arm.name: Result({lr: self._run(arm, lr, TUNING_SEED, "tune").loss for lr in self.task.grid})
            for arm in self.task.arms
        }
        for arm in self.task.arms:
            result = results[arm.name]
            result.finals = [self._run(arm, result.lr, seed, "eval") for seed in self.seeds]
        rates = {name: result.lr for name, result in results.items()}
        clock = self.out / "timing" / f"{self.task.problem.name}.json"
        for name, timing in time_arms(self.task.problem, self.task.arms, rates, clock, self.task.timed).items():
            results[name].timing = timing
        return results

    def _run(self, arm: Arm, lr: float, seed: int, split: Split) -> Run:
        problem, steps = self.task.problem, self.task.steps
        run = partial(train, problem, arm, lr=lr, seed=seed, steps=steps, split=split, evaluations=1)
        done = self.journal.run_once(setting(problem, arm, lr=lr, seed=seed, steps=steps, split=split), run)
        name = f"{self.task.problem.name:10} {split}  {arm.name:22}"
        print(f"{name} lr {lr:<7g} seed {seed}  loss {done.loss:.4f}  {done.step_ms:.0f} ms / step", flush=True)
        return done


def describe(task: Task, results: dict[str, Result]) -> str:
    table = finetuning_table(results, BASELINE.name, task.steps, task.close)
    return f"### {task.title}: {task.steps} steps\n\n{table}\n\n{tuning_table(results)}"


def draw(results: dict[str, dict[str, Result]], out: Path) -> Path:
    panels = {
        TASKS[task].title: {arm: list(result.tuning.items()) for arm, result in arms.items()}
        for task, arms in results.items()
    }
    return plot_rates(panels, out / "learning_rates.png")


if __name__ == "__main__":
    with plain_errors():
        main()
