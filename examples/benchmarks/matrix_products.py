"""What structure="orthogonal" computes a step, against the forward and backward pass, for models that people train.

    python examples/benchmarks/matrix_products.py --out docs/products

Operations are counted by torch on the meta device, without weights: those of a forward and a backward pass of 2048
tokens, those of orthogonalising every hidden matrix, and those of turning the momenta of tables and heads into the
basis of their narrow side. Time is another matter: such products run near the peak of a GPU, the rest of a step often
does not. It has not been measured there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from adafisher_hf import AdaFisherW
from errors import plain_errors
from tables import markdown

LENGTH = 2048  # tokens of a forward pass
STEPS = {"8k": 8_192, "64k": 65_536, "512k": 524_288}  # tokens of an optimizer step
MODELS: dict[str, dict[str, Any]] = {
    "GPT-2": dict(model_type="gpt2", n_positions=LENGTH),
    "Qwen3-0.6B": dict(
        model_type="qwen3",
        vocab_size=151_936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=True,
    ),
    "Llama-3.2-1B": dict(
        model_type="llama",
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    ),
    "Llama-3.1-8B": dict(
        model_type="llama",
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/products"), help="folder for the table")
    args = parser.parse_args(argv)
    header = ["extra operations a step, orthogonalising + tables", *(f"{name} tokens a step" for name in STEPS)]
    table = markdown(header, [[name, *row(options)] for name, options in MODELS.items()])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text(f"{table}\n")
    print(table)


def row(options: dict[str, Any]) -> list[str]:
    config = AutoConfig.for_model(**options)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    token = pass_operations(model) / LENGTH
    hidden, tables = step_operations(model)
    return [f"{hidden / (token * size):.1%} + {tables / (token * size):.1%}" for size in STEPS.values()]


def pass_operations(model: nn.Module) -> int:
    """Of a forward and a backward pass of ``LENGTH`` tokens."""
    ids = torch.zeros(1, LENGTH, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counted:
        model(input_ids=ids, labels=ids).loss.backward()
    return counted.get_total_flops()


def step_operations(model: nn.Module) -> tuple[int, int]:
    """Of hidden matrices, and of everything else, in a step that does not refresh."""
    optimizer = AdaFisherW(model, structure="orthogonal", max_factor_dim=4096)
    optimizer.init_state()
    counts = {True: 0, False: 0}
    for block in optimizer._statistics:
        direction = optimizer._directions.whole(block, optimizer.state[block.parameter], 0.1)
        momentum = torch.empty(block.layouts[0].shape, device="meta")
        with FlopCounterMode(display=False) as counted:
            direction.apply(momentum)
        counts[block.role == "hidden"] += counted.get_total_flops()
    optimizer.close()
    return counts[True], counts[False]


if __name__ == "__main__":
    with plain_errors():
        main()
