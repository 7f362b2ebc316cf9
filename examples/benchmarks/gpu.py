"""Step time and peak memory on a GPU, beside AdamW's fused kernel.

    python examples/benchmarks/gpu.py

Trains a Llama on one batch of random tokens in each setting that the Trainer knows (mixed precision, half-precision
weights, activation checkpointing, torch.compile) and prints one table. AdaFisher's curvature is refreshed at every
step during its dense warm-up and at every tenth after it; both times are given. Without a CUDA device there is nothing
to measure; --device cpu is a dry run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

import itertools

from benchmarks.harness.arms import Arm, adafisherw, adamw
from tables import markdown

WARMUP = 25  # steps: all first eigenbases are made in them, and everything is compiled
DENSE = 5  # the last of them, whose time is that of a step that refreshes
LEARNING_RATE = 1e-4

ADAMW = Arm("AdamW, fused", adamw, {"fused": True})
ARMS = (
    ADAMW,
    Arm("AdaFisherW", adafisherw, {"update_warmup": WARMUP}),
    Arm("AdaFisherW, bf16 momentum", adafisherw, {"update_warmup": WARMUP, "state_dtype": "bfloat16"}),
    Arm("AdaFisherW, 8-bit momentum", adafisherw, {"update_warmup": WARMUP, "state_dtype": "int8"}),
    Arm("AdaFisherW, kronecker", adafisherw, {"update_warmup": WARMUP, "structure": "kronecker"}),
)


@dataclass(frozen=True)
class Setting:
    """How the model is run. fp16 goes with a loss scaler."""

    name: str
    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    checkpointing: bool = False
    compiled: bool = False


SETTINGS = (
    Setting("tf32"),
    Setting("bf16", autocast=torch.bfloat16),
    Setting("fp16, scaled", autocast=torch.float16),
    Setting("bf16 weights", weights=torch.bfloat16),
    Setting("bf16, checkpointing", autocast=torch.bfloat16, checkpointing=True),
    Setting("bf16, compiled", autocast=torch.bfloat16, compiled=True),
)


@dataclass(frozen=True)
class Measured:
    """Seconds a step (in the dense warm-up and after it), bytes, and the loss of the last step."""

    dense: float
    sparse: float
    peak: int
    state: int
    parameters: int
    loss: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--hidden_size", type=int, default=1024)
    parser.add_argument("--num_hidden_layers", type=int, default=16)
    parser.add_argument("--vocab_size", type=int, default=32_000)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--block_size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=30, help="timed steps after the warm-up (default 30)")
    parser.add_argument("--settings", nargs="*", choices=[setting.name for setting in SETTINGS], metavar="NAME")
    args = parser.parse_args(argv)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print("no CUDA device: nothing to measure (--device cpu is a dry run)")
        return
    torch.set_float32_matmul_precision("high")
    print(f"{described(args.device)}, torch {torch.__version__}")
    settings = [setting for setting in SETTINGS if not args.settings or setting.name in args.settings]
    print(table({setting.name: {arm.name: attempt(arm, setting, args) for arm in ARMS} for setting in settings}))


def described(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def attempt(arm: Arm, setting: Setting, args: argparse.Namespace) -> Measured | None:
    """What ``measure`` finds; None where the memory is not enough."""
    torch.compiler.reset()
    try:
        return measure(arm, setting, args)
    except torch.OutOfMemoryError:
        return None
    finally:
        if args.device.startswith("cuda"):
            torch.cuda.empty_cache()


def measure(arm: Arm, setting: Setting, args: argparse.Namespace) -> Measured:
    device = torch.device(args.device)
    model = build(setting, args).to(device, setting.weights).train()
    optimizer = arm.build(model, LEARNING_RATE)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, loss = [], torch.zeros(())
    for loss in training(model, optimizer, setting, args):  # noqa: B007 - the last one is of interest
        synchronize(device)
        seconds.append(time.perf_counter())
    steps = [end - start for start, end in itertools.pairwise(seconds)]  # one fewer than was trained
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return Measured(
        dense=mean(steps[WARMUP - 1 - DENSE : WARMUP - 1]),
        sparse=mean(steps[WARMUP - 1 :]),
        peak=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        state=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        loss=loss.item(),
    )


def build(setting: Setting, args: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        intermediate_size=args.hidden_size * 11 // 4,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=max(1, args.hidden_size // 64),
        num_key_value_heads=max(1, args.hidden_size // 64),
        max_position_embeddings=args.block_size,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    if setting.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def training(
    model: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting, args: argparse.Namespace
) -> Iterator[Tensor]:
    """Trains, and yields the loss of every step."""
    device = next(model.parameters()).device
    # After the optimizer was made: its hooks have to be on before anything is traced.
    network: Any = torch.compile(model) if setting.compiled else model
    scaler = torch.amp.GradScaler(device.type, enabled=setting.autocast is torch.float16)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(args.vocab_size, (args.batch_size, args.block_size), generator=generator).to(device)
    for _ in range(WARMUP + args.steps):
        with torch.autocast(device.type, setting.autocast) if setting.autocast else nullcontext():
            loss = network(input_ids=ids, labels=ids).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        yield loss.detach()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mean(seconds: Sequence[float]) -> float:
    return sum(seconds) / len(seconds)


def table(measured: dict[str, dict[str, Measured | None]]) -> str:
    header = [
        "setting", "optimizer", "ms / step", "× AdamW", "ms / step in the warm-up", "peak GiB", "× AdamW",
        "state bytes / parameter", "loss",
    ]  # fmt: skip
    rows = []
    for setting, arms in measured.items():
        adamw = arms[ADAMW.name]
        rows += [[setting, name, *cells(found, adamw)] for name, found in arms.items()]
    return markdown(header, rows)


def cells(found: Measured | None, adamw: Measured | None) -> list[str]:
    if found is None:
        return ["out of memory", *[""] * 6]
    return [
        f"{1e3 * found.sparse:.1f}",
        f"{found.sparse / adamw.sparse:.2f}" if adamw else "",
        f"{1e3 * found.dense:.1f}",
        f"{found.peak / 2**30:.2f}" if found.peak else "",
        f"{found.peak / adamw.peak:.2f}" if adamw and adamw.peak else "",
        f"{found.state / found.parameters:.2f}",
        f"{found.loss:.3f}",
    ]


if __name__ == "__main__":
    main()
