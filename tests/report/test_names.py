"""Short names stay apart and say which block they belong to."""

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel

from adafisher_hf.report.names import LONGEST, block_of, short_names


def test_examples():
    names = ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.bias"]
    assert short_names(names) == ["embed_tokens", "0 up_proj", "0 bias"]
    assert short_names(["h.0.attn.c_proj.weight", "h.0.mlp.c_proj.weight"]) == ["0 attn.c_proj", "0 mlp.c_proj"]
    assert short_names(["encoder.block.0.q.weight", "decoder.block.0.q.weight"]) == ["enc 0 q", "dec 0 q"]
    blocks = ["encoder.0.q.weight", "encoder.0.k.weight", "decoder.0.q.weight", "shared.weight"]
    assert short_names(blocks) == ["enc 0 q", "enc 0 k", "dec 0 q", "shared"]
    assert [block_of(name) for name in names] == ["", "model.layers.0", "model.layers.0"]


@pytest.mark.parametrize("kind", ["gpt2", "t5", "bert", "whisper"])
def test_names_of_whole_models_are_short_and_all_different(kind):
    with torch.device("meta"):
        model = AutoModel.from_config(CONFIG_MAPPING[kind]())
    names = [name for name, _ in model.named_parameters()]
    short = short_names(names)
    assert len(set(short)) == len(names)
    assert sum(len(name) > LONGEST for name in short) <= len(names) / 20  # those that only their middle tells apart
