"""Every architecture that people fine-tune: a block or a named fallback for each parameter; a step moves them all."""

from __future__ import annotations

import re

import pytest
import torch

from adafisher_hf import AdaFisherW, coverage
from adafisher_hf.insight.coverage import summarize
from tests.architectures import CASES, build

# What no hook can see, and what it is; everything else must have a block of its own.
FALLBACKS = {
    "vit": "cls_token|position_embeddings",
    "swin": "relative_position_bias_table|position_embeddings",
    "convnext": "layer_scale_parameter",
    "clip": "logit_scale|class_embedding",
    "wav2vec2": r"pos_conv_embed.*original\d|masked_spec_embed|layer_weights",
    "mixtral": r"experts\.|gate\.weight",
    "gpt_oss": r"experts\.|router\.|sinks",
    "qwen2_moe": r"experts\.|gate\.weight",
    "mamba": r"A_log|mixer\.D",
}
# Owners that get gradients although their forward never runs: the fallback is decided at run time.
SILENT = {
    "deberta_v2": r"rel_embeddings\.weight",
    "whisper": r"decoder\.embed_positions\.weight",
    "mamba": r"mixer\.(conv1d|dt_proj)\.(weight|bias)",
}
# The share of the numbers by kind, in whole per cent of these tiny models.
SHARES = {
    "gpt2": {"conv1d": 84, "embedding+linear": 7, "embedding": 7, "norm": 2},
    "llama": {"linear": 88, "embedding": 10, "norm": 2},
    "qwen3": {"linear": 87, "embedding": 10, "norm": 2},
    "gemma3": {"linear": 85, "embedding+linear": 11, "norm": 4},
    "mistral": {"linear": 88, "embedding": 10, "norm": 2},
    "phi": {"linear": 88, "embedding": 10, "norm": 2},
    "gpt_neox": {"linear": 86, "embedding": 10, "norm": 3},
    "opt": {"linear": 76, "embedding": 11, "embedding+linear": 10, "norm": 3},
    "bert": {"linear": 77, "embedding": 10, "embedding+linear": 10, "norm": 4},
    "roberta": {"linear": 77, "embedding": 10, "embedding+linear": 10, "norm": 4},
    "distilbert": {"linear": 78, "embedding": 19, "norm": 3},
    "electra": {"linear": 86, "embedding": 6, "embedding+linear": 5, "norm": 3},
    "deberta_v2": {"linear": 78, "embedding": 12, "embedding+linear": 8, "norm": 3},
    "albert": {"linear": 78, "embedding": 10, "embedding+linear": 9, "norm": 3},
    "modernbert": {"linear": 88, "embedding+linear": 10, "norm": 2},
    "t5": {"linear": 92, "embedding+linear": 5, "norm": 2, "embedding": 1},
    "bart": {"linear": 73, "embedding": 16, "embedding+linear": 8, "norm": 3},
    "whisper": {"linear": 69, "conv": 17, "embedding+linear": 7, "embedding": 4, "norm": 3},
    "vit": {"linear": 52, "conv": 42, "gradient": 4, "norm": 2},
    "swin": {"linear": 86, "conv": 7, "norm": 4, "gradient": 3},
    "convnext": {"linear": 55, "conv": 43, "norm": 2, "gradient": 0},
    "resnet": {"conv": 97, "batchnorm": 2, "linear": 1},
    "clip": {"conv": 69, "linear": 23, "embedding": 6, "norm": 1, "gradient": 0},
    "wav2vec2": {"linear": 71, "gradient": 17, "conv": 8, "norm": 4},
    "mixtral": {"gradient": 64, "linear": 28, "embedding": 7, "norm": 1},
    "gpt_oss": {"gradient": 64, "linear": 28, "embedding": 7, "norm": 1},
    "mamba": {"linear": 78, "embedding+linear": 10, "gradient": 6, "conv": 6, "norm": 1},
    "qwen2_moe": {"linear": 57, "gradient": 31, "embedding": 10, "norm": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_has_a_block_or_a_named_fallback(name):
    model, _ = build(name)
    rows = coverage(model)
    assert [row.name for row in rows] == [n for n, p in model.named_parameters() if p.requires_grad]
    fallbacks = [row.name for row in rows if row.kind == "gradient"]
    assert all(re.search(FALLBACKS.get(name, "nothing"), parameter) for parameter in fallbacks), fallbacks
    assert bool(fallbacks) == (name in FALLBACKS)
    assert {row.kind: round(100 * row.share) for row in summarize(rows)} == SHARES[name]


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "orthogonal"])
@pytest.mark.parametrize("name", CASES)
def test_a_step_moves_every_parameter_that_has_a_gradient(name, structure):
    model, batch = build(name)
    optimizer = AdaFisherW(model, lr=1e-3, structure=structure)
    model(**batch).loss.backward()
    blocks = optimizer._by_parameter()
    captured = {block.name for block in blocks.values() if any(tap.sums is not None for tap in block.taps)}
    parameters = dict(model.named_parameters())
    graded = {n for n, p in parameters.items() if p.grad is not None and p.grad.any()}
    assert len(graded) > 0.8 * len(parameters)
    hooked = {block.name for block in blocks.values() if block.taps}
    silent = sorted(graded & hooked - captured)
    assert all(re.search(SILENT.get(name, "nothing"), parameter) for parameter in silent), silent
    assert bool(silent) == (name in SILENT)

    before = {n: p.detach().clone() for n, p in parameters.items()}
    optimizer.step()
    for parameter in graded:
        assert not torch.equal(parameters[parameter], before[parameter]), parameter
        assert torch.isfinite(parameters[parameter]).all(), parameter
        curvature = optimizer.curvature(parameters[parameter])
        assert torch.isfinite(curvature).all() and (curvature > 0).all(), parameter


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "qwen2_moe"])
def test_experts_of_the_registry_have_blocks_of_their_own(name):
    def curvatures(checkpointing):
        model, batch = build(name)
        model.set_experts_implementation("adafisher")
        if checkpointing:
            model.gradient_checkpointing_enable()
            model.train()
        rest = [row.name for row in coverage(model) if row.kind == "gradient"]
        assert all(
            re.search(r"(gate|router)\.(weight|bias)$|shared_expert_gate|sinks$", parameter) for parameter in rest
        ), rest
        optimizer = AdaFisherW(model, lr=1e-3)
        model(**batch).loss.backward()
        optimizer.step()
        experts = [(n, p) for n, p in model.named_parameters() if ".experts." in n]
        assert experts and "_experts_implementation" not in model.config.to_diff_dict()
        return {n: optimizer.curvature(p) for n, p in experts}

    plain, checkpointed = curvatures(False), curvatures(True)
    for parameter, expected in plain.items():
        torch.testing.assert_close(checkpointed[parameter], expected, msg=lambda m, n=parameter: f"{n}: {m}")
