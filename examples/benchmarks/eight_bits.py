"""What 8 bits of momentum cost: the loss with ``state_dtype=int8`` beside float32 and bfloat16, and the bytes.

    python examples/benchmarks/eight_bits.py --out docs/int8

Short runs on the tuning split: a MiniLM on topics of news, a ViT on digits, and the pretraining task with the
structures that leave its first plateau in so few steps. Finished runs are kept in OUT/runs.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from benchmarks.harness.arms import Arm, adafisherw
from benchmarks.harness.finetuning import FineTuning
from benchmarks.harness.journal import Journal
from benchmarks.harness.materials.encoders import topics
from benchmarks.harness.materials.vision import digits
from benchmarks.harness.news import NewsProblem
from benchmarks.harness.runner import Run, setting, train
from errors import plain_errors
from tables import markdown

STATE_DTYPES = ("float32", "bfloat16", "int8")


class Task(NamedTuple):
    """A problem, the structure that trains it, and its learning rate."""

    name: str
    problem: Any
    structure: str
    lr: float


TASKS = (
    Task("MiniLM, topics", FineTuning("topics", topics, 8, {"max_length": 48}), "diagonal", 1e-4),
    Task("ViT, digits", FineTuning("digits", digits, 32), "diagonal", 1e-3),
    Task("Llama from scratch, news", NewsProblem(), "orthogonal", 3e-3),
    Task("Llama from scratch, news", NewsProblem(), "kronecker", 3e-3),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of a run (default 60)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default 0 1 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-int8"), help="folder for runs and table")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    table = measure(args.steps, args.seeds, Journal(args.out / "runs.json"))
    (args.out / "table.md").write_text(table + "\n")
    print(f"\n{table}")


def measure(steps: int, seeds: Sequence[int], journal: Journal) -> str:
    """Losses of float32, and how much higher the others are on the same seeds: mean, and from least to most."""
    rows = []
    for task in TASKS:
        runs = {dtype: [_run(journal, task, dtype, seed, steps) for seed in seeds] for dtype in STATE_DTYPES}
        wide, *narrow = (runs[dtype] for dtype in STATE_DTYPES)
        cells = [f"{sum(run.loss for run in wide) / len(wide):.4f}"]
        for some in narrow:
            gaps = [run.loss - other.loss for run, other in zip(some, wide, strict=True)]
            cells.append(f"{sum(gaps) / len(gaps):+.4f} ({min(gaps):+.4f} to {max(gaps):+.4f})")
        stored = " / ".join(f"{runs[dtype][0].state_bytes_per_parameter:.2f}" for dtype in STATE_DTYPES)
        rows.append([task.name, f"`{task.structure}`", *cells, stored])
    header = ["task", "structure", "loss, float32", "bfloat16", "int8", "state bytes / parameter"]
    return markdown(header, rows)


def _run(journal: Journal, task: Task, state_dtype: str, seed: int, steps: int) -> Run:
    arm = Arm(f"{task.structure}, {state_dtype}", adafisherw, dict(structure=task.structure, state_dtype=state_dtype))
    where: dict[str, Any] = dict(lr=task.lr, seed=seed, steps=steps, split="tune")
    finished = journal.run_once(setting(task.problem, arm, **where), partial(train, task.problem, arm, **where))
    print(f"{task.name:26} {arm.name:22} seed {seed}  loss {finished.loss:.4f}", flush=True)
    return finished


if __name__ == "__main__":
    with plain_errors():
        main()
