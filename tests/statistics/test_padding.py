"""Padding tokens are left out, by the mask that belongs to the module."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

from adafisher_hf import AdaFisherW
from tests.models import llama


def rows_seen(model, inputs):
    """How many tokens each module counted, by name."""
    optimizer = AdaFisherW(model.parameters(), model=model)
    model(**inputs).loss.backward()
    taps = optimizer._statistics._taps
    return {
        name: int(taps[id(module)].sums.tokens)
        for name, module in model.named_modules()
        if id(module) in taps and taps[id(module)].sums is not None
    }


def test_encoder_and_decoder_go_by_their_own_masks():
    torch.manual_seed(0)
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    ids, labels = torch.randint(1, 20, (2, 5)), torch.randint(1, 20, (2, 5))
    mask, decoder_mask = torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)
    mask[0, 3:] = 0
    decoder_mask[1, 1:] = 0
    rows = rows_seen(
        model, dict(input_ids=ids, attention_mask=mask, decoder_attention_mask=decoder_mask, labels=labels)
    )
    for name, count in rows.items():
        cross_source = "EncDecAttention.k" in name or "EncDecAttention.v" in name
        expected = 8 if name.startswith("encoder") or cross_source else 6
        if not name.endswith("relative_attention_bias"):
            assert count == expected, name
    assert any("EncDecAttention.k" in name for name in rows)


def test_decoder_without_a_mask_counts_every_token():
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, decoder_start_token_id=0)
    ids = torch.randint(1, 20, (2, 5))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    rows = rows_seen(T5ForConditionalGeneration(config), dict(input_ids=ids, attention_mask=mask, labels=ids))
    assert rows["decoder.block.0.layer.0.SelfAttention.q"] == 10
    assert rows["encoder.block.0.layer.0.SelfAttention.q"] == 8


def test_decoder_without_a_mask_goes_by_its_labels():
    """What the Trainer's collator sends; a token without a label between others is no padding."""
    torch.manual_seed(0)
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    ids, labels = torch.randint(1, 20, (2, 7)), torch.randint(1, 20, (2, 5))
    labels[0, 1] = labels[1, 3:] = -100
    curvatures = []
    for padding in (0, 4):
        padded = nn.functional.pad(labels, (0, padding), value=-100)
        rows = rows_seen(model, dict(input_ids=ids, labels=padded))
        assert rows["decoder.block.0.layer.0.SelfAttention.q"] == rows["lm_head"] == 8
        assert rows["encoder.block.0.layer.0.SelfAttention.q"] == 14
        optimizer = AdaFisherW(model.parameters(), model=model, lr=0.0, weight_decay=0.0)
        model.zero_grad()
        model(input_ids=ids, labels=padded).loss.backward()
        optimizer.step()
        curvatures.append({n: optimizer.curvature(p) for n, p in model.named_parameters() if "relative" not in n})
    for name, curvature in curvatures[0].items():
        torch.testing.assert_close(curvatures[1][name], curvature, rtol=1e-4, atol=1e-6, msg=name)


def test_positional_mask_is_found():
    model = llama()
    ids, mask = torch.randint(0, 64, (2, 6)), torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    optimizer = AdaFisherW(model.parameters(), model=model)
    model(ids, mask, labels=ids).loss.backward()
    tap = optimizer._statistics._taps[id(model.model.layers[0].mlp.down_proj)]
    assert int(tap.sums.tokens) == 10


def test_what_stands_in_the_padding_does_not_matter():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    curvatures = []
    for filler in (0, 7):
        torch.manual_seed(0)
        model = BertForSequenceClassification(config).eval()
        ids = torch.randint(1, 30, (3, 6), generator=torch.Generator().manual_seed(1))
        mask = torch.ones(3, 6, dtype=torch.long)
        mask[1, 4:] = mask[2, 2:] = 0
        ids[mask == 0] = filler
        optimizer = AdaFisherW(model.parameters(), model=model)
        model(input_ids=ids, attention_mask=mask, labels=torch.tensor([0, 1, 0])).loss.backward()
        optimizer.step()
        curvatures.append({name: optimizer.curvature(p) for name, p in model.named_parameters()})
    for name, value in curvatures[0].items():
        torch.testing.assert_close(curvatures[1][name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 7)])
def test_other_masks_are_ignored(shape):
    """4-D masks, and masks longer than the tokens (a key-value cache), say nothing about the rows."""
    from adafisher_hf.statistics.padding import Padding

    model = llama()
    padding = Padding()
    padding.attach(model)
    mask = torch.zeros(shape, dtype=torch.long)
    for hook in model._forward_pre_hooks.values():
        hook(model, (), {"attention_mask": mask})
    assert padding.mask("attention_mask", torch.Size((2, 4))) is None
