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
from adafisher_hf.curvature import capture
from adafisher_hf.curvature.factors import second_moment
from adafisher_hf.curvature.layers import OneHot, Rows
from adafisher_hf.kernels import Divisor
from benchmarks.harness.arms import Arm, Groups, adafisherw
from benchmarks.harness.journal import Journal
from benchmarks.harness.problem import NewsProblem
from benchmarks.harness.runner import setting, train
from errors import plain_errors
from tables import markdown

RATES = (3e-3, 1e-2)
SEED = 0


class Rooted(Divisor):
    """√(Σ rows ⊗ cols + τ) instead of the sum."""

    def dense(self, out: Tensor | None = None) -> Tensor:
        return super().dense(out).sqrt_()


class Rootless(Divisor):
    """The second moment relative to its mean, plus τ, without the root."""

    def dense(self, out: Tensor | None = None) -> Tensor:
        assert self.second_moment is not None
        mean = self.second_moment.mean((1, 2), keepdim=True)
        return torch.div(self.second_moment, torch.where(mean > 0, mean, 1.0), out=out).add_(self.damping)


def rooted(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    return _with(lambda divisor: _as(Rooted, divisor), groups, model, knobs)


def rootless(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    return _with(lambda d: d if d.second_moment is None else _as(Rootless, d), groups, model, knobs)


def coarse(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    capture.second_moment = _coarse_second_moment  # type: ignore[attr-defined]
    return AdaFisherW(groups, model=model, **knobs)


ROTATED = {"structure": "kronecker", "second_moment": "rotated"}
ARMS = (
    Arm("factors, no root (the default)", adafisherw, {"structure": "kronecker"}),
    Arm("factors, root", rooted, {"structure": "kronecker"}),
    Arm("rotated, root (as built)", adafisherw, ROTATED),
    Arm("rotated, no root", rootless, ROTATED),
    Arm("factors, no root, products in bfloat16", coarse, {"structure": "kronecker"}),  # last: it stays in place
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


def _coarse_second_moment(rows: Rows, weights: Tensor, dense: bool = False) -> Tensor:
    if isinstance(rows, OneHot) or not dense:
        return second_moment(rows, weights, dense)
    return second_moment(rows.bfloat16(), weights, dense)


def _with(change: Callable[[Divisor], Divisor], groups: Groups, model: nn.Module, knobs: dict[str, Any]) -> AdaFisherW:
    optimizer = AdaFisherW(groups, model=model, **knobs)
    original = optimizer._mode.divisor
    optimizer._mode.divisor = lambda *args: change(original(*args))  # type: ignore[method-assign]
    return optimizer


def _as(cls: type[Divisor], divisor: Divisor) -> Divisor:
    return cls(**{field.name: getattr(divisor, field.name) for field in dataclasses.fields(divisor)})


if __name__ == "__main__":
    with plain_errors():
        main()
