"""What bfloat16 weights lose, and what brings it back: Kahan's summation or stochastic rounding.

    python examples/benchmarks/rounding.py --out docs/rounding

The pretraining task with the model in bfloat16, AdaFisherW's three ways to round a weight, and float32 weights beside
them, at its best learning rate and at a tenth of it, where updates are small against the weights. Losses are of the
tuning split. Finished runs are kept in OUT/runs.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from adafisher_hf import AdaFisherW
from benchmarks.harness.arms import Arm, Groups, adafisherw
from benchmarks.harness.journal import Journal
from benchmarks.harness.news import NewsProblem
from benchmarks.harness.runner import Run, setting, train
from errors import plain_errors
from tables import markdown

RATES = (3e-3, 3e-4)


@dataclass(frozen=True)
class HalfNewsProblem(NewsProblem):
    """The same with all weights in bfloat16."""

    def model(self, seed: int) -> nn.Module:
        return super().model(seed).bfloat16()

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "dtype": "bfloat16"}


class Stochastic(AdaFisherW):
    """Rounds up or down by chance, so that the mean is the exact weight; nothing of it is kept for the next step."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        super().step(closure)
        for param, state in self.state.items():
            exact = param.float() + state["compensation"].float()
            param.copy_(round_by_chance(exact))
            state["compensation"].zero_()


def round_by_chance(exact: Tensor) -> Tensor:
    """A neighbour in bfloat16 of each float32 number, the nearer one with the higher chance."""
    bits = exact.view(torch.int32)
    return ((bits + torch.randint_like(bits, 1 << 16)) & ~0xFFFF).view(torch.float32).bfloat16()


def stochastic(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    return Stochastic(groups, model=model, **knobs)


ARMS = (
    (NewsProblem(), Arm("float32 weights", adafisherw)),
    (HalfNewsProblem(), Arm("to the nearest", adafisherw, {"rounding": "nearest"})),
    (HalfNewsProblem(), Arm("stochastic", stochastic)),
    (HalfNewsProblem(), Arm("Kahan", adafisherw)),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of a run (default 150)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds (default 0 1 2)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-rounding"), help="folder for runs and table")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    table = measure(args.steps, args.seeds, Journal(args.out / "runs.json"))
    (args.out / "table.md").write_text(table + "\n")
    print(f"\n{table}")


def measure(steps: int, seeds: Sequence[int], journal: Journal) -> str:
    rows = []
    for problem, arm in ARMS:
        cells = []
        for lr in RATES:
            runs = [_run(journal, problem, arm, lr, seed, steps) for seed in seeds]
            losses = [run.loss for run in runs]
            spread = (max(losses) - min(losses)) / 2
            cells.append(f"{sum(losses) / len(losses):.3f} ± {spread:.3f}")
        rows.append([arm.name, *cells, f"{runs[0].state_bytes_per_parameter:.2f}"])
    header = ["weights in bfloat16, rounded", *[f"loss at lr {lr:g}" for lr in RATES], "state bytes / parameter"]
    return markdown(header, rows)


def _run(journal: Journal, problem: NewsProblem, arm: Arm, lr: float, seed: int, steps: int) -> Run:
    run = partial(train, problem, arm, lr=lr, seed=seed, steps=steps, split="tune")
    finished = journal.run_once(setting(problem, arm, lr=lr, seed=seed, steps=steps, split="tune"), run)
    print(f"{arm.name:16} lr {lr:g}  seed {seed}  loss {finished.loss:.4f}", flush=True)
    return finished


if __name__ == "__main__":
    with plain_errors():
        main()
