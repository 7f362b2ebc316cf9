"""Bytes of state of other optimizers beside ours: as their own classes keep them, and for models that people train."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import Adafactor, GPT2Config, GPT2LMHeadModel

from adafisher_hf.cli import main
from adafisher_hf.insight.coverage import coverage
from adafisher_hf.insight.others import OTHERS

ROWS = [*OTHERS, "structure=diagonal", "structure=diagonal,state_dtype=bfloat16", "structure=diagonal,state_dtype=int8"]
LLAMA = dict(
    model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=128256, num_key_value_heads=8, head_dim=128,
)  # fmt: skip
CONFIGS = {
    "gpt2": dict(model_type="gpt2", architectures=["GPT2LMHeadModel"]),
    "Qwen3-0.6B": dict(
        model_type="qwen3", architectures=["Qwen3ForCausalLM"], vocab_size=151936, hidden_size=1024,
        intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        tie_word_embeddings=True,
    ),
    "Llama-3.2-1B": LLAMA | dict(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, head_dim=64,
        tie_word_embeddings=True,
    ),
    "Llama-3.1-8B": LLAMA | dict(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        tie_word_embeddings=False,
    ),
}  # fmt: skip
# Numbers of the model; bytes a number of the rows of ROWS.
EXPECTED = {
    "gpt2": (124_439_808, [8.0, 2.037, 0.010, 5.270, 4.132, 4.012, 2.012, 1.046]),
    "Qwen3-0.6B": (596_049_920, [8.0, 2.032, 0.006, 5.044, 3.912, 4.007, 2.007, 1.038]),
    "Llama-3.2-1B": (1_235_814_400, [8.0, 2.032, 0.003, 4.850, 3.554, 4.003, 2.003, 1.035]),
    "Llama-3.1-8B": (8_030_261_248, [8.0, 2.031, 0.002, 4.523, 3.128, 4.002, 2.002, 1.033]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_real_models_are_counted_from_their_config(name, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    assert main(["coverage", str(tmp_path), "--memory", "--json"]) == 0
    rows = {row["setting"]: row for row in json.loads(capsys.readouterr().out)["memory"]}
    assert list(rows)[: len(ROWS)] == ROWS
    numbers, expected = EXPECTED[name]
    assert rows["AdamW"]["bytes"] == 8 * numbers
    assert [rows[row]["per_parameter"] for row in ROWS] == pytest.approx(expected, abs=6e-4)


def model(dtype=torch.float32):
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=64, vocab_size=301, n_positions=32)).to(dtype)


def counted(model, name):
    """By formula, by parameter."""
    roles = {row.name: row.role for row in coverage(model)}
    return {own: OTHERS[name](p, roles[own]) for own, p in model.named_parameters()}


def kept(model, optimizer, without=("step",)):
    """By the optimizer itself, by parameter."""
    return {
        name: sum(x.nbytes for key, x in optimizer.state[p].items() if torch.is_tensor(x) and key not in without)
        for name, p in model.named_parameters()
        if p in optimizer.state
    }


def stepped(model, optimizer):
    ids = torch.zeros(1, 3, dtype=torch.long)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_formulas_count_what_the_classes_keep(dtype):
    network = model(dtype)
    adamw = stepped(network, torch.optim.AdamW(network.parameters()))
    assert kept(network, adamw) == counted(network, "AdamW")
    adafactor = stepped(network, Adafactor(network.parameters(), lr=1e-3, scale_parameter=False, relative_step=False))
    assert kept(network, adafactor, ("step", "RMS")) == counted(network, "Adafactor")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_formula_of_eight_bits_counts_what_the_class_keeps(dtype):
    network = model(dtype)
    coarse = pytest.importorskip("bitsandbytes").optim.AdamW8bit(network.parameters())
    for i, p in enumerate(network.parameters()):
        coarse.init_state(coarse.param_groups[0], p, 0, i)
    assert kept(network, coarse, ("step", "qmap1", "qmap2")) == counted(network, "AdamW, 8-bit")


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="older torch")
def test_muon_keeps_one_buffer_of_hidden_matrices_and_adamw_the_rest():
    network = model()
    hidden = [p for name, p in network.named_parameters() if name.endswith("weight") and ".h." in name and p.dim() == 2]
    muon, adamw = torch.optim.Muon(hidden), torch.optim.AdamW([p for p in network.parameters() if p.dim() == 1])
    stepped(network, muon)
    adamw.step()
    formula = counted(network, "Muon")
    found = kept(network, muon) | kept(network, adamw)
    assert found == {name: formula[name] for name in found} and len(hidden) == 8
    assert formula["transformer.wte.weight"] == 2 * network.transformer.wte.weight.nbytes


def test_galore_keeps_a_projector_and_two_moments_of_a_quarter_of_the_rank():
    weight = nn.Parameter(torch.empty(64, 256, dtype=torch.bfloat16))
    assert OTHERS["GaLore, a quarter of the rank"](weight, "hidden") == 2 * (64 * 16 + 2 * 16 * 256)
    assert OTHERS["GaLore, a quarter of the rank"](weight, "vocabulary") == 2 * 2 * 64 * 256


@pytest.mark.parametrize(("shape", "numbers"), [((), 1), ((7,), 7), ((3, 5), 8), ((2, 3, 5), 16)])
def test_adafactor_of_any_number_of_dimensions(shape, numbers):
    assert OTHERS["Adafactor"](torch.empty(shape), "other") == 4 * numbers
