"""Every parameter has a block or the named fallback, and the fallback is what coverage says."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from adafisher_hf import AdaFisherW, coverage
from adafisher_hf.insight.coverage import summarize
from tests.models import llama, tiny


def kinds(model):
    return {row.name: row.kind for row in coverage(model)}


def test_tied_weight_is_one_row_with_both_owners():
    row = next(row for row in coverage(llama()) if row.name == "model.embed_tokens.weight")
    assert row.kind == "embedding+linear"
    assert row.owners == ("model.embed_tokens", "lm_head")
    assert row.shape == (64, 32)


def test_gpt2_is_covered_without_a_fallback():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, n_positions=8))
    found = kinds(model)
    assert found["transformer.h.0.attn.c_attn.weight"] == "conv1d"
    assert found["transformer.wpe.weight"] == "embedding"
    assert found["transformer.ln_f.bias"] == "norm"
    assert "gradient" not in found.values()


def test_experts_fall_back_and_say_so():
    config = MixtralConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    found = kinds(model)
    assert {name.rsplit(".", 1)[-1] for name, kind in found.items() if kind == "gradient" and "experts" in name}
    shares = summarize(coverage(model))
    assert sum(share.share for share in shares) == pytest.approx(1.0)
    assert sum(share.numbers for share in shares) == sum(p.numel() for p in model.parameters())


def test_frozen_parameters_are_left_out():
    model = tiny()
    model.up.requires_grad_(False)
    assert not any(name.startswith("up.") for name in kinds(model))
    optimizer = AdaFisherW([p for p in model.parameters() if p.requires_grad], model=model)
    assert not model.up._forward_hooks and model.down._forward_hooks
    optimizer.close()


def test_meta_device():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", num_hidden_layers=2))
    assert {row.kind for row in coverage(model)} == {"embedding", "linear", "norm"}


def test_fallback_is_the_rank_one_second_moment_of_the_gradient():
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model)
    nn.functional.mse_loss(model(torch.randint(0, 11, (2, 3))), torch.randn(2, 3, 11).double()).backward()
    squared = model.gate.grad.square()
    optimizer.step()
    rank_one = torch.outer(squared.mean(1), squared.mean(0)) / squared.mean()
    torch.testing.assert_close(optimizer.curvature(model.gate), rank_one / rank_one.mean() + 0.1)


def test_a_module_whose_forward_never_runs_falls_back():
    """torch's attention uses its out_proj's weight without calling it."""
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0].square().mean()

    model = Model().double()
    optimizer = AdaFisherW(model.parameters(), model=model)
    model(torch.randn(2, 4, 8).double()).backward()
    weight = model.attention.out_proj.weight
    squared = weight.grad.square()
    optimizer.step()
    rank_one = torch.outer(squared.mean(1), squared.mean(0)) / squared.mean()
    torch.testing.assert_close(optimizer.curvature(weight), rank_one / rank_one.mean() + 0.1)
    vector = model.attention.in_proj_bias
    assert optimizer.curvature(vector).std() > 0
