"""What still depends on how a batch is cut into micro-batches, measured: the numbers of docs/limits.md.

    python examples/benchmarks/limits.py

Small random models in float64; one batch of eight sequences in one piece and in eight. The columns are the largest
relative difference of F̂ over a parameter's entries, and how far the parameter is from where it would be after 20
steps, relative to how far it has moved. Everything that is not in the table agrees to 1e-6.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the examples' folder, whose modules this one shares

from adafisher_hf import AdaFisherW
from tables import markdown

STEPS, LR = 20, 1e-3
SHARED: dict[str, Any] = dict(vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=1)
WIDTH: dict[str, Any] = dict(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=64)
BART: dict[str, Any] = dict(
    decoder_start_token_id=1,
    d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=64, decoder_ffn_dim=64,
)  # fmt: skip
T5: dict[str, Any] = dict(decoder_start_token_id=0, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "Llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SHARED, **WIDTH, tie_word_embeddings=True)),
    "GPT-2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**SHARED, n_embd=32, n_head=4, n_layer=2)),
    "BERT": lambda: t.BertForMaskedLM(t.BertConfig(**SHARED, **WIDTH)),
    "DeBERTa v2": lambda: t.DebertaV2ForMaskedLM(
        t.DebertaV2Config(**SHARED, **WIDTH, relative_attention=True, pos_att_type=["c2p", "p2c"])
    ),
    "T5": lambda: t.T5ForConditionalGeneration(t.T5Config(**SHARED, **T5)),
    "BART": lambda: t.BartForConditionalGeneration(t.BartConfig(**SHARED, **BART)),
}
AGREES = 1e-6


def main() -> None:
    rows = [row for name, make in MODELS.items() for row in compare(name, make)]
    print(markdown(["model", "parameter", "F̂ differs by up to", "after 20 steps"], rows))


def compare(name: str, make: Callable[[], nn.Module]) -> list[list[str]]:
    """The parameters of a model that see how a batch is cut."""
    whole, single = train(make, parts=1, steps=1), train(make, parts=8, steps=1)
    end, other = train(make, parts=1, steps=STEPS)[0], train(make, parts=8, steps=STEPS)[0]
    start = train(make, parts=1, steps=0)[0]
    rows = []
    for parameter, curvature in whole[1].items():
        difference = float(((single[1][parameter] - curvature).abs() / curvature).max())
        moved = float((end[parameter] - start[parameter]).norm())
        away = float((other[parameter] - end[parameter]).norm()) / moved if moved else 0.0
        if difference > AGREES:
            rows.append([name, f"`{parameter}`", f"{difference:.2g}", f"{away:.1%}"])
    return rows


def train(make: Callable[[], nn.Module], parts: int, steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and F̂ by name."""
    torch.manual_seed(0)
    model = make().double().eval()  # no dropout: it would differ anyway
    optimizer = AdaFisherW(model, lr=LR)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        ids = torch.randint(2, 64, (8, 16), generator=generator)
        optimizer.zero_grad()
        for part in ids.chunk(parts):
            (model(input_ids=part, labels=part).loss / parts).backward()
        optimizer.step()
    names = {name: p for name, p in model.named_parameters() if p.requires_grad and optimizer.state.get(p)}
    return (
        {name: p.detach().clone() for name, p in model.named_parameters()},
        {name: optimizer.curvature(p) for name, p in names.items()},
    )


if __name__ == "__main__":
    main()
