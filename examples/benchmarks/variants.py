"""Variants of the Kronecker structure that are not built in, and what they would bring.

    python examples/benchmarks/variants.py --out docs/variants

Whether to divide by the curvature or by its square root, for both of its estimators; and whether the products of the
statistics may be in bfloat16. The pretraining task's tuning split, two learning rates, one seed. Finished runs are
kept in OUT/runs.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from adafisher_hf import AdaFisherW
from adafisher_hf.layers import Tokens
from adafisher_hf.preconditioners import PRECONDITIONERS, Entry
from adafisher_hf.preconditioners.base import Direction
from adafisher_hf.preconditioners.kronecker import Kronecker, RotatedQuotient
from adafisher_hf.statistics.block import Wanted
from adafisher_hf.statistics.sums import second_moment
from adafisher_hf.statistics.tap import Tap
from benchmarks.harness.arms import Arm, Groups, adafisherw
from benchmarks.harness.journal import Journal
from benchmarks.harness.news import NewsProblem
from benchmarks.harness.runner import setting, train
from errors import plain_errors
from tables import markdown

RATES = (3e-3, 1e-2)
SEED = 0


class Rooted(RotatedQuotient):
    """√(Σ rows ⊗ cols + τ) instead of the sum."""

    def dense(self, out: Tensor | None = None) -> Tensor:
        return super().dense(out).sqrt_()


class Rootless(RotatedQuotient):
    """The second moment relative to its mean, plus τ, without the root."""

    def dense(self, out: Tensor | None = None) -> Tensor:
        if self.second_moment is None:
            return super().dense(out)
        mean = self.second_moment.mean((1, 2), keepdim=True)
        return torch.div(self.second_moment, torch.where(mean > 0, mean, 1.0), out=out).add_(self.damping)


class RootedKronecker(Kronecker):
    def direction(self, *args: Any) -> Direction:
        return _as(Rooted, super().direction(*args))


class RootlessKronecker(Kronecker):
    def direction(self, *args: Any) -> Direction:
        return _as(Rootless, super().direction(*args))


class CoarseTap(Tap):
    """Products of the statistics in bfloat16."""

    @staticmethod
    def moment(tokens: Tokens, weights: Tensor, dense: bool = False) -> Tensor:
        if isinstance(tokens, Tensor) and dense:
            tokens = tokens.bfloat16()
        return second_moment(tokens, weights, dense)


class CoarseKronecker(Kronecker):
    def wanted(self) -> Wanted:
        return dataclasses.replace(super().wanted(), tap=CoarseTap)


DEFAULTS = PRECONDITIONERS["kronecker"].defaults
PRECONDITIONERS |= {
    "rooted": Entry(RootedKronecker, defaults=DEFAULTS),
    "rootless": Entry(RootlessKronecker, defaults=DEFAULTS),
    "coarse": Entry(CoarseKronecker, defaults=DEFAULTS),
}


def variant(structure: str) -> Callable[..., torch.optim.Optimizer]:
    """An arm of one of these structures; its runs are named by the options it shares with the built-in one."""

    def make(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
        return AdaFisherW(groups, model=model, **{**knobs, "structure": structure})

    return make


ROTATED = {"structure": "kronecker", "second_moment": "rotated"}
ARMS = (
    Arm("factors, no root (the default)", adafisherw, {"structure": "kronecker"}),
    Arm("factors, root", variant("rooted"), {"structure": "kronecker"}),
    Arm("rotated, root (as built)", adafisherw, ROTATED),
    Arm("rotated, no root", variant("rootless"), ROTATED),
    Arm("factors, no root, products in bfloat16", variant("coarse"), {"structure": "kronecker"}),
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps of a run (default 150)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-variants"), help="folder for runs and table")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(args.out / "runs.json")
    rows = [[arm.name, *[f"{_loss(journal, arm, lr, args.steps):.3f}" for lr in RATES]] for arm in ARMS]
    table = markdown(["variant", *[f"tuning loss at lr {lr:g}" for lr in RATES]], rows)
    (args.out / "table.md").write_text(table + "\n")
    print(f"\n{table}")


def _loss(journal: Journal, arm: Arm, lr: float, steps: int) -> float:
    problem = NewsProblem()
    run = partial(train, problem, arm, lr=lr, seed=SEED, steps=steps, split="tune")
    finished = journal.run_once(setting(problem, arm, lr=lr, seed=SEED, steps=steps, split="tune"), run)
    print(f"{arm.name:40} lr {lr:g}  loss {finished.loss:.4f}", flush=True)
    return finished.loss


def _as(cls: type[RotatedQuotient], quotient: Any) -> RotatedQuotient:
    return cls(**{field.name: getattr(quotient, field.name) for field in dataclasses.fields(quotient)})


if __name__ == "__main__":
    with plain_errors():
        main()
