"""How long a step of each member of the family takes, in steps of AdamW.

    python examples/benchmarks/family_cost.py

A small Llama on random tokens, all optimizers side by side in turns of ten steps, so that all see the same machine. A
hundred steps count, with all that is done every so many of them; AdaFisher's warm-up, in which it refreshes at every
step, is left out. Takes a few minutes of one core. The numbers are kept in --out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from benchmarks.harness.arms import Arm, adafisherw
from benchmarks.harness.contestants import ADAMW
from benchmarks.harness.problem import Scores, Split
from benchmarks.harness.relatives import relatives
from benchmarks.harness.timing import TURN, time_arms
from modeling import small_llama
from tables import markdown

VOCABULARY = 2000


@dataclass(frozen=True)
class RandomTokens:
    """Nothing to be learned, at the price of a language model."""

    batch_size: int = 8
    block_size: int = 128
    layers: int = 2

    def describe(self) -> dict[str, Any]:
        return {"tokens": [self.batch_size, self.block_size], "layers": self.layers}

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(small_llama(VOCABULARY, num_hidden_layers=self.layers))

    def batches(self, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield torch.randint(VOCABULARY, (self.batch_size, self.block_size), generator=generator)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return model(input_ids=batch, labels=batch).loss

    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        raise NotImplementedError("there is nothing to be learned")


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    torch.set_num_threads(1)
    problem = RandomTokens(layers=args.layers)
    arms = [warm(arm.at(arm.start)) for arm in relatives(problem.batch_size)]
    # The first turn is for caches and allocators.
    timings = time_arms(problem, arms, {arm.name: arm.start.lr for arm in arms}, args.out, args.steps + TURN)
    seconds = {name: sum(timing.turns[1:]) for name, timing in timings.items()}
    ratios = {name: round(total / seconds[ADAMW.name], 2) for name, total in seconds.items()}
    content = json.loads(args.out.read_text())
    args.out.write_text(json.dumps({**content, "steps of AdamW": ratios}, indent=1) + "\n")
    size = sum(parameter.numel() for parameter in problem.model(0).parameters())
    rows = [[name, f"{ratio:.2f}"] for name, ratio in ratios.items()]
    print(f"{size / 1e6:.1f} M parameters\n\n{markdown(['', 'time of a step, AdamW = 1'], rows)}")


def warm(arm: Arm) -> Arm:
    """As it is after its warm-up."""
    return replace(arm, knobs={**arm.knobs, "update_warmup": 0}) if arm.make is adafisherw else arm


def parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="of the model (default 2)")
    parser.add_argument("--steps", type=int, default=100, help="that are counted (default 100)")
    parser.add_argument("--out", type=Path, default=Path("docs/family/cost.json"), help="file for the numbers")
    return parser


if __name__ == "__main__":
    main()
