"""What AdaFisherW sends and stores on 8 to 1024 ranks: an exact count for Llama 7B and 70B, without their weights.

    python examples/benchmarks/scaling.py --out docs/scaling

The models live on the meta device. The length of the message of a refresh is that of the code that sends it, the state
is that of the first step, cut as FSDP2 cuts it; rank 0 is counted, which never holds less than another. Bytes moved are
those of the passes of the foreach kernel over the rows of a rank. Time is not simulated: it depends on the machine, and
there was none of this size to check it against.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from adafisher_hf import AdaFisherW
from adafisher_hf.statistics.choice import STRIDE
from adafisher_hf.statistics.reduce import message_length
from adafisher_hf.update.blockwise import SCALE
from plotting import plot_scaling
from tables import markdown

LLAMAS: dict[str, dict[str, Any]] = {
    "Llama 7B": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
    "Llama 70B": dict(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8
    ),
}
RANKS = (8, 32, 128, 512, 1024)
SHARDED = ("exp_avg", SCALE, "compensation")  # what is cut like the parameter; all else is the same on all ranks
STRUCTURES: dict[str, dict[str, Any]] = {
    "diagonal": {"structure": "diagonal"},
    "kronecker": {"structure": "kronecker", "max_factor_dim": 8192},
}
# Reads and writes of each number that a rank holds, counted in the code: torch's foreach AdamW; our kernel; and the
# norms that ranks have to know before the update.
ADAMW_PASSES, KERNEL_PASSES, NORM_PASSES = 20, 22, 11
BYTES = 4


class Count(NamedTuple):
    """One model with one structure.

    Attributes:
        parameters: how many numbers the model has; as many floats a step are reduced for the gradients.
        refresh: floats of the message of a refresh.
        step: floats of the message of every step (FSDP2).
        interval: steps between two refreshes.
        statistics: operations of a refresh on a token, against 6 a parameter of the model.
    """

    parameters: int
    refresh: int
    step: int
    interval: int
    statistics: float

    @property
    def share(self) -> float:
        """Floats of a step on average, against those of the gradients."""
        return (self.refresh / self.interval + self.step) / self.parameters


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-scaling"), help="folder for table and plot")
    parser.add_argument("--models", nargs="+", choices=LLAMAS, default=list(LLAMAS), help="default: all")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    messages, memory = [], []
    curves: dict[str, list[tuple[float, float]]] = {}
    for name in args.models:
        for structure, knobs in STRUCTURES.items():
            optimizer = make_optimizer(llama(name), knobs)
            found = count(optimizer)
            messages.append(_message_row(name, structure, found))
            stored = [state_bytes(optimizer, ranks) for ranks in RANKS]
            memory.append([name, structure, *[_gigabytes(number) for number in stored]])
            curves[f"{name}, {structure}"] = list(zip(RANKS, stored, strict=True))
        adamw = [2 * BYTES * found.parameters / ranks for ranks in RANKS]
        memory.append([name, "AdamW", *[_gigabytes(number) for number in adamw]])
        curves[f"{name}, AdamW"] = list(zip(RANKS, adamw, strict=True))
    table = "\n\n".join([markdown(MESSAGES, messages), markdown(_memory_header(), memory), _moved(args.models)])
    (args.out / "table.md").write_text(table + "\n")
    plot_scaling(curves, args.out / "memory.png", "Optimizer state of a rank (FSDP2)")
    print(table)


def llama(name: str) -> nn.Module:
    """The model without its weights."""
    config = LlamaConfig(vocab_size=32000, tie_word_embeddings=False, **LLAMAS[name])
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def make_optimizer(model: nn.Module, knobs: dict[str, Any]) -> AdaFisherW:
    """An optimizer with the state of its first step."""
    optimizer = AdaFisherW(model, **knobs)
    optimizer.init_state()
    return optimizer


def count(optimizer: AdaFisherW) -> Count:
    """What it sends, and what the statistics cost."""
    parameters = sum(param.numel() for param in optimizer.state)
    blocks = sum(len(state["step"]) for state in optimizer.state.values())
    taps = optimizer._statistics.taps
    # A multiplication and an addition a feature; a dense side is a matrix product.
    work = 2 * sum(torch.Size(shape).numel() for tap in taps for shape in tap.shapes.values())
    stride, interval = optimizer.config.token_stride or STRIDE, optimizer.config.update_interval
    return Count(parameters, message_length(taps), 3 * blocks, interval, work / stride / interval / (6 * parameters))


def state_bytes(optimizer: AdaFisherW, ranks: int) -> int:
    """Bytes of state on rank 0 of FSDP2: of what is sharded a chunk of the first dimension, of all else everything."""
    total = 0
    for state in optimizer.state.values():
        for key, value in state.items():
            part = -(-len(value) // ranks) / len(value) if key in SHARDED and value.dim() else 1
            total += round(_bytes(value) * part)
    return total


def _message_row(name: str, structure: str, found: Count) -> list[str]:
    return [
        name,
        structure,
        f"{found.parameters / 1e9:.2f} G",
        f"{found.refresh:,}",
        f"{found.step:,}",
        f"{found.share:.3%}",
        f"{found.statistics:.3%}",
    ]


MESSAGES = [
    "model",
    "structure",
    "floats of gradients a step",
    "floats a refresh",
    "floats a step (FSDP2)",
    "average against gradients",
    "statistics against the model's operations",
]


def _memory_header() -> list[str]:
    return ["state of a rank, GB", "structure", *[f"{ranks} ranks" for ranks in RANKS]]


def _moved(models: Sequence[str]) -> str:
    rows = []
    for name in models:
        numbers = sum(param.numel() for param in llama(name).parameters())
        for label, passes in (("AdamW (foreach)", ADAMW_PASSES), ("diagonal", KERNEL_PASSES + NORM_PASSES)):
            moved = [passes * BYTES * numbers / ranks / 1e9 for ranks in RANKS]
            rows.append([name, label, *[f"{gigabytes:.2f}" for gigabytes in moved]])
    return markdown(["moved by a rank's update, GB", "optimizer", *[f"{ranks} ranks" for ranks in RANKS]], rows)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.2f}"


if __name__ == "__main__":
    main()
