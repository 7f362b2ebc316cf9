"""Peak memory of training a GPT-2 of 124 million random weights, measured on the CPU, a process a setting.

    python examples/benchmarks/memory.py --out docs/memory

What a process has at most during three steps on 16 tokens, less what it had before the model was made, in bytes a
parameter: weights, gradients, optimizer state, and what a step needs for itself.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from adafisher_hf import AdaFisherW
from errors import plain_errors
from tables import markdown

STEPS, TOKENS = 3, 16
SETTINGS: dict[str, dict[str, Any] | None] = {
    "AdamW": None,
    "diagonal": {},
    "state_dtype=bfloat16": {"state_dtype": "bfloat16"},
    "gradient_release=true": {"gradient_release": True},
    "state_dtype=bfloat16,gradient_release=true": {"state_dtype": "bfloat16", "gradient_release": True},
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/memory"), help="folder for the table")
    parser.add_argument("--setting", choices=SETTINGS, help="measure this one here, and print bytes a parameter")
    args = parser.parse_args(argv)
    if args.setting:
        print(json.dumps(peak(SETTINGS[args.setting])))
        return
    rows = [[name, f"{measure(name):.1f}"] for name in SETTINGS]
    table = markdown(["optimizer", "peak, bytes a parameter"], rows)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text(f"{table}\n")
    print(table)


def measure(setting: str) -> float:
    """In a process of its own: a peak does not go down again."""
    command = [sys.executable, __file__, "--setting", setting]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(found.stdout.splitlines()[-1]))


def peak(options: dict[str, Any] | None) -> float:
    ids = torch.randint(0, 1000, (1, TOKENS))
    before = _most()
    model = GPT2LMHeadModel(GPT2Config())
    optimizer = _optimizer(model, options)
    for _ in range(STEPS):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return (_most() - before) / sum(parameter.numel() for parameter in model.parameters())


def _optimizer(model: nn.Module, options: dict[str, Any] | None) -> torch.optim.Optimizer:
    if options is None:
        return torch.optim.AdamW(model.parameters(), fused=True)
    return AdaFisherW(model, **options)


def _most() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    with plain_errors():
        main()
