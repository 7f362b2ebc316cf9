"""What a parameter is for, told without a user's help."""

from __future__ import annotations

import pytest
import torch
import transformers as t
from peft import LoraConfig, get_peft_model
from torch import nn

from adafisher_hf import AdaFisherConfig, AdaFisherW, coverage
from tests.architectures import CASES
from tests.models import tiny

VOCABULARY = {  # beside tables, everything that is a vocabulary's side by its name, in the models of CASES
    "bert": {"cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"},
}
TABLES = ("embed", "wte", "wpe", "shared", "relative_attention_bias", "bias_table", "token_type", "position", "table")
HEADS = ("lm_head", "classifier", "decoder.weight", "head.", "embed_out", "score", "generator_lm_head", "proj_out")


def roles(model):
    return {row.name: row.role for row in coverage(model)}


@pytest.mark.parametrize("name", CASES)
def test_every_matrix_has_a_role(name):
    """Tables and heads are the vocabulary's, all that has a known use between them is hidden."""
    make, _ = CASES[name]
    for row in coverage(make()):
        lengths = [length for length in row.shape if length > 1]
        if len(lengths) < 2:
            assert row.role == "vector", row
        elif row.role == "vocabulary":
            words = (row.name, *row.owners)
            assert any(word in text for text in words for word in (*TABLES, *HEADS)), row
        elif row.role == "hidden":
            assert row.name.split(".")[-2:-1] not in (["lm_head"], ["classifier"], ["wte"], ["score"])
        else:
            assert row.role in ("router", "other", "vector"), row


@pytest.mark.parametrize("name", CASES)
def test_most_of_a_model_between_its_tables_is_hidden(name):
    rows = [row for row in coverage(CASES[name][0]()) if row.role not in ("vocabulary", "vector")]
    count = {
        role: sum(torch.Size(row.shape).numel() for row in rows if row.role == role) for role in ("hidden", "other")
    }
    assert count["hidden"] > 5 * count["other"], [row.name for row in rows if row.role == "other"]


def test_the_head_of_a_classifier_is_the_vocabulary_s_and_its_transform_is_not():
    sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    found = roles(t.RobertaForSequenceClassification(t.RobertaConfig(**sizes, num_labels=3)))
    assert found["classifier.out_proj.weight"] == "vocabulary"
    assert found["classifier.dense.weight"] == "hidden"
    found = roles(t.BertForMaskedLM(t.BertConfig(**sizes, tie_word_embeddings=False)))
    assert found["cls.predictions.decoder.weight"] == "vocabulary"
    assert found["cls.predictions.transform.dense.weight"] == "hidden"


def test_tables_that_are_plain_parameters():
    config = t.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16
    )
    found = roles(t.ViTForImageClassification(config))
    assert found["vit.embeddings.position_embeddings"] in ("vocabulary", "vector")  # one patch: two positions
    assert found["vit.embeddings.cls_token"] == "vector"
    assert found["vit.embeddings.patch_embeddings.projection.weight"] == "hidden"
    assert found["classifier.weight"] == "vocabulary"


def test_routers_and_experts():
    sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    mixtral = t.MixtralForCausalLM(t.MixtralConfig(**sizes, num_key_value_heads=1, num_local_experts=4))
    found = roles(mixtral)
    assert [name for name, role in found.items() if role == "router"] == ["model.layers.0.mlp.gate.weight"]
    assert all(role == "hidden" for name, role in found.items() if "experts" in name)


def test_the_gate_of_a_gated_layer_chooses_no_experts():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.up, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    assert roles(Gated())["gate.weight"] == "hidden"


def test_of_a_model_of_unknown_making_the_last_matrix_is_the_head():
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 3), nn.LayerNorm(3))
    found = roles(net)
    assert [found[f"{i}.weight"] for i in (0, 1, 2, 3)] == ["hidden", "vector", "hidden", "vocabulary"]


def test_adapters_are_no_hidden_matrices_and_the_head_beside_them_is_a_head():
    sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    model = t.BertForSequenceClassification(t.BertConfig(**sizes))
    adapters = LoraConfig(r=2, target_modules=["query", "word_embeddings"], modules_to_save=["classifier"])
    found = roles(get_peft_model(model, adapters))
    assert all(role == "adapter" for name, role in found.items() if "lora_" in name)
    assert {role for name, role in found.items() if name.endswith("default.weight") and "classifier" in name} == {
        "vocabulary"
    }


def test_depthwise_convolutions_are_vectors_and_grouped_ones_stacks():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
    found = {row.name: row for row in coverage(net, AdaFisherConfig(structure="orthogonal"))}
    assert found["0.weight"].role == "vector"
    assert found["1.weight"].treatment == "orthogonalised, 2 matrices"


def test_without_a_model_only_shapes_are_known():
    optimizer = AdaFisherW(tiny())
    assert {row.name: row.role for row in optimizer.coverage_rows()}["embed.weight"] == "vocabulary"
