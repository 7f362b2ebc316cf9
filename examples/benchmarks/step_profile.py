"""Where the time of a step goes, and the count of operations that explains it.

    python examples/benchmarks/step_profile.py

Trains the small Llama of the other benchmarks for a few steps with either structure, with a clock around each part of
the optimizer, once while every step refreshes the curvature (the dense warm-up) and once after it. Beside the time
stands what the part has to compute, counted from the shapes of the weights. The last table is that count for a model of
1 B parameters, as a share of the forward and backward pass.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from adafisher_hf import AdaFisher, AdaFisherConfig
from adafisher_hf.preconditioners.diagonal import Diagonal
from adafisher_hf.preconditioners.kronecker import Basis, Kronecker, RotatedQuotient
from adafisher_hf.preconditioners.quotient import Quotient
from adafisher_hf.statistics.choice import automatic_stride
from adafisher_hf.statistics.tap import Tap
from benchmarks.harness.arms import Arm, adafisherw
from benchmarks.harness.news import NewsProblem
from benchmarks.harness.runner import Training
from tables import markdown

STEPS = 20
EIGH = 12  # operations of an eigendecomposition, times d³: what LAPACK's dsyevd needs to within a factor of two

# Part of a step, and the functions whose time it is; where one runs inside another, the inner one is subtracted.
PARTS: dict[str, list[tuple[Any, str]]] = {
    "statistics (hooks)": [(Tap, "forward"), (Tap, "backward")],
    "averages": [(Diagonal, "refresh")],
    "eigenbasis": [(Kronecker, "renew")],
    "direction": [(Diagonal, "direction"), (Kronecker, "direction")],
    "rotations": [(Basis, "rotate"), (Basis, "rotate_back")],
    "division": [(Quotient, "apply"), (RotatedQuotient, "apply")],
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of each measurement (default {STEPS})")
    args = parser.parse_args(argv)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    for structure in ("diagonal", "kronecker"):
        for phase, knobs in (("every step refreshes", {"update_interval": 1}), ("every 10th step refreshes", {})):
            profile(structure, phase, {"structure": structure, "update_warmup": 0, **knobs}, args.steps)
    print(predicted(Shape(2048, 5504, 24, 16_384), AdaFisherConfig(structure="kronecker", max_factor_dim=8192)))


def profile(structure: str, phase: str, knobs: dict[str, Any], steps: int) -> None:
    """Prints one table."""
    clock = Clock()
    with clock.around(PARTS):
        training = Training(NewsProblem(), Arm(structure, adafisherw, knobs), lr=3e-3, seed=0, steps=1000)
        for _ in range(11):  # past the first refresh and all first bases
            training.step()
        clock.seconds.clear()
        start = training.seconds
        for _ in range(steps):
            training.step()
    total = training.seconds - start
    clock.seconds["forward, backward"] = total - sum(clock.seconds.values())
    clock.seconds["rest of the optimizer"] = clock.seconds.pop("optimizer")
    work = operations(training.model, AdaFisherConfig(**knobs).resolved(), 16 * 128)
    rows = [
        [part, f"{1e3 * seconds / steps:.2f}", f"{seconds / total:.1%}", _billions(work.get(part))]
        for part, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1])
        if seconds > 0
    ]
    print(f"{structure}, {phase}: {1e3 * total / steps:.0f} ms a step\n")
    print(markdown(["part", "ms / step", "share", "10⁹ operations / step"], rows), end="\n\n")


class Clock:
    """Exclusive seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    @contextmanager
    def around(self, parts: dict[str, list[tuple[Any, str]]]) -> Iterator[None]:
        # Not step(): torch replaces it in each class once and for all, and would keep the first clock.
        optimizer = [(AdaFisher, "_refresh"), (AdaFisher, "_update")]
        with ExitStack() as patches:
            for part, places in {**parts, "optimizer": optimizer}.items():
                for owner, name in places:
                    if name in vars(owner):
                        timed = self._timed(part, vars(owner)[name])
                        patches.enter_context(mock.patch.object(owner, name, timed))
            yield

    def _timed(self, part: str, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent = time.perf_counter() - start
                self.seconds[part] += spent - self._inner.pop()
                self._inner[-1] += spent

        return timed


def operations(model: nn.Module, config: AdaFisherConfig, tokens: int) -> dict[str, float]:
    """Additions and multiplications of a step, by part, for the Linear layers of a model."""
    sizes = [tuple(layer.weight.shape) for layer in model.modules() if isinstance(layer, nn.Linear)]
    return count(sizes, config, tokens)


def count(sizes: Sequence[tuple[int, ...]], config: AdaFisherConfig, tokens: int) -> dict[str, float]:
    """Additions and multiplications of a step for weights of these sizes (rows, columns)."""
    work = {"forward, backward": 6.0 * tokens * sum(rows * cols for rows, cols in sizes)}
    if config.structure == "diagonal":
        return work
    interval = config.update_interval

    def dense(*sides: int) -> list[int]:
        return [side for side in sides if side <= config.max_factor_dim]

    for rows, cols in sizes:
        sides = dense(rows, cols)
        stride = config.token_stride or automatic_stride(tokens, max(sides, default=0))
        work |= {
            part: work.get(part, 0.0) + numbers
            for part, numbers in {
                "statistics (hooks)": sum(2.0 * tokens / stride * d * d for d in sides) / interval,
                "eigenbasis": sum(EIGH * d**3 for d in sides) / (interval * config.basis_interval),
                "direction": sum(2.0 * d**3 for d in sides) / interval,
                "rotations": 2 * sum(2.0 * rows * cols * d for d in sides),
            }.items()
        }
    return work


@dataclass(frozen=True)
class Shape:
    """A Llama-like model: its width, the width of its MLP, its layers, and the tokens of a batch on one device."""

    hidden: int
    mlp: int
    layers: int
    tokens: int

    def sizes(self) -> list[tuple[int, int]]:
        h, m = self.hidden, self.mlp
        return [(h, h)] * 4 * self.layers + [(m, h)] * 2 * self.layers + [(h, m)] * self.layers


def predicted(shape: Shape, config: AdaFisherConfig) -> str:
    work = count(shape.sizes(), config.resolved(), shape.tokens)
    network = work["forward, backward"]
    rows = [[part, _billions(numbers), f"{numbers / network:.1%}"] for part, numbers in work.items()]
    title = (
        f"counted, kronecker after the warm-up: hidden {shape.hidden}, MLP {shape.mlp}, {shape.layers} layers, "
        f"{shape.tokens:,} tokens a batch, max_factor_dim {config.max_factor_dim}"
    )
    return f"{title}\n\n{markdown(['part', '10⁹ operations / step', 'of forward and backward'], rows)}"


def _billions(operations: float | None) -> str:
    return "" if operations is None else f"{operations / 1e9:,.2f}"


if __name__ == "__main__":
    main()
