"""Padding tokens are left out, by the mask that belongs to the module."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

from adafisher_hf import AdaFisherW
from adafisher_hf.statistics.masks import spread
from tests.architectures import build
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


MASK = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ((2, 3), [[1, 1, 0], [1, 0, 0]]),
        ((6,), [1, 1, 0, 1, 0, 0]),
        ((2, 3, 2), [[[1, 1], [1, 1], [0, 0]], [[1, 1], [0, 0], [0, 0]]]),
        ((6, 2), [[1, 1], [1, 1], [0, 0], [1, 1], [0, 0], [0, 0]]),
        ((2, 2, 3), [[[1, 1, 0], [1, 1, 0]], [[1, 0, 0], [1, 0, 0]]]),
        ((2, 3, 1, 1), [[[[1]], [[1]], [[0]]], [[[1]], [[0]], [[0]]]]),
        ((2,), None),
        ((1, 3), None),
        ((3, 2), None),
        ((2, 4), None),
        ((4, 2, 3), None),
        ((2, 4, 4), None),
    ],
)
def test_leading_dimensions_of_every_shape(tokens, expected):
    actual = spread(MASK, torch.Size(tokens))
    assert (None if actual is None else actual.int().tolist()) == expected


def test_as_many_heads_as_tokens():
    """Their order is told by the strides of a view."""
    by_token = torch.randn(2, 3, 3 * 4).view(2, 3, 3, 4)
    tokens = torch.Size((2, 3, 3))
    assert torch.equal(spread(MASK, tokens, by_token), MASK.unsqueeze(2).expand(tokens))
    assert torch.equal(spread(MASK, tokens, by_token.transpose(1, 2)), MASK.unsqueeze(1).expand(tokens))


@pytest.mark.parametrize("name", ["gemma3", "qwen3"])
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_as_many_heads_as_tokens_in_a_model(name, backend):
    """Two heads and two tokens, one of them padding: each head's second vector must not count."""
    torch.compiler.reset()
    model, _ = build(name)
    optimizer = AdaFisherW(model)
    network = torch.compile(model, backend=backend) if backend else model
    inputs = []
    norm = model.model.layers[1].self_attn.q_norm
    if backend is None:
        norm.register_forward_hook(lambda module, args, output: inputs.append(args[0].detach()))
    ids, mask = torch.tensor([[3, 4], [5, 6]]), torch.tensor([[1, 1], [1, 0]])
    network(input_ids=ids, attention_mask=mask, labels=ids.where(mask.bool(), -100)).loss.backward()
    sums = optimizer._statistics._taps[id(norm)].sums
    assert int(sums.tokens) == 6
    if inputs:
        by_token = inputs[0].transpose(1, 2) if name == "gemma3" else inputs[0]
        real = by_token[mask.bool()]
        normalised = real * torch.rsqrt(real.square().mean(-1, keepdim=True) + 1e-6)
        torch.testing.assert_close(sums.input[0], normalised.square().sum((0, 1)))


@pytest.mark.parametrize(("name", "table"), [("t5", "relative_attention_bias"), ("deberta_v2", "pos_key_proj")])
def test_a_table_of_distances_is_no_batch(name, table):
    """Six tokens look at six, six texts of six tokens; sixteen distances, one text of sixteen tokens."""
    ids = torch.randint(3, 31, (6, 6) if name == "t5" else (1, 16))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    rows = []
    for given in (mask, torch.ones_like(ids)):
        seen = rows_seen(build(name)[0].eval(), dict(input_ids=ids, attention_mask=given, labels=ids))
        rows.append({module: count for module, count in seen.items() if module.endswith(table)})
    assert rows[0] and rows[0] == rows[1]
