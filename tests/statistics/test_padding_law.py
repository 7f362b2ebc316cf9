"""The law of padding: how far a batch is padded, and on which side, changes no sum of any layer.

Three sequences of unequal lengths, in float64; the loss is a sum over tokens, so that they may come one by one.
"""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from torch.nn.functional import cross_entropy

from adafisher_hf import AdaFisherW
from tests.architectures import CASES, build

TEXT = [name for name, (_, batch) in CASES.items() if "input_ids" in batch] + ["whisper"]
EXPERTS = ["mixtral", "gpt_oss", "qwen2_moe"]  # with blocks of their own as well
LENGTHS = (5, 3, 6)
# Models that compute something else when the padding stands on the left.
NOT_ON_THE_LEFT = {
    "bart": "positions count from the first token, padding or not, and no others can be given",
    "distilbert": "its classifier reads the first token, padding or not",
    "whisper": "its input is sound, and a decoder is never padded on the left",
}
# These tables are looked up for the longest sequence, not for each one: which distances and places there are is all
# that they see, and it depends on how far the batch is padded.
CANNOT_KNOW = {"t5": r"relative_attention_bias$", "bart": r"decoder\.embed_positions$"}
# Looked up once a call, whatever the batch: the padding changes nothing, three calls instead of one do.
ONCE_A_CALL = {"deberta_v2": r"pos_(key|query)_proj$"}


def padded(rows, length, left, filler):
    """The rows in one tensor, (rows, length)."""
    out = torch.full((len(rows), length), filler)
    for i, row in enumerate(rows):
        out[i, length - len(row) if left else 0 :][: len(row)] = row
    return out


def batch_of(name, model, which, extra, left):
    """Some of the sequences, with so many tokens more than the longest of them needs."""
    generator = torch.Generator().manual_seed(5)
    texts = [torch.randint(3, 31, (n,), generator=generator) for n in LENGTHS]
    labels = [torch.randint(3, 31, (n,), generator=generator) for n in reversed(LENGTHS)]
    accepts = inspect.signature(model.forward).parameters
    for text in texts:
        text[-1] = 1  # the end of the text: CLIP reads it there
    texts, labels = [texts[i] for i in which], [labels[i] for i in which]
    longest = max(map(len, texts)) + extra
    batch = {"input_ids": padded(texts, longest, left, 2)}
    batch["attention_mask"] = padded([torch.ones_like(text) for text in texts], longest, left, 0)
    if model.config.is_encoder_decoder:
        batch["labels"] = padded(labels, max(map(len, labels)) + extra, False, -100)
    if "position_ids" in accepts:
        batch["position_ids"] = padded([torch.arange(len(text)) for text in texts], longest, left, 0)
    if name == "whisper":
        features = torch.linspace(-1, 1, len(LENGTHS) * 8 * 20, dtype=torch.float64).view(-1, 8, 20).sin()
        return {"input_features": features[list(which)], "labels": batch["labels"]}
    if name == "clip":
        batch["pixel_values"] = torch.linspace(-1, 1, 3 * 32 * 32, dtype=torch.float64).view(1, 3, 32, 32)
    return batch


def loss_of(output, batch):
    """A sum over real tokens, or over examples where there is one output for each."""
    if "text_embeds" in output:
        return (output.text_embeds * torch.linspace(-1, 1, output.text_embeds.shape[-1])).sum()
    real = batch["labels"] != -100 if "labels" in batch else batch["attention_mask"].bool()
    logits = output.logits if output.logits.dim() == 2 else output.logits[real]
    targets = torch.zeros(len(logits), dtype=torch.long)
    return cross_entropy(logits, targets, reduction="sum")


def sums_of(name, batches, experts="eager"):
    """Σh², Σδ² and the number of tokens of every tap, over all batches."""
    model, _ = build(name)
    model = model.double().eval()
    if name in EXPERTS:  # whose product of groups knows no float64
        model.set_experts_implementation(experts)
    optimizer = AdaFisherW(model)
    for which, extra, left in batches:
        batch = batch_of(name, model, which, extra, left)
        loss_of(model(**batch), batch).backward()
    names = {id(module): module_name for module_name, module in model.named_modules()}
    taps = optimizer._statistics._taps.items()
    return {
        f"{names[key[0]]}.{key[1]}" if isinstance(key, tuple) else names[key]: tap.sums
        for key, tap in taps
        if tap.sums is not None
    }


def assert_same(actual, expected, except_for):
    assert actual.keys() == expected.keys()
    different = []
    for module, sums in expected.items():
        pairs = [(getattr(actual[module], field), getattr(sums, field)) for field in ("input", "output", "tokens")]
        if not all(torch.allclose(a, b, rtol=1e-9, atol=1e-14) for a, b in pairs):
            different.append(module)
    unexpected = [module for module in different if not re.search(except_for, module)]
    assert not unexpected, unexpected
    return different


ALL = (0, 1, 2)
AS_IT_IS = [(ALL, 0, False)]
NOTHING = r"^$"


@pytest.mark.parametrize("name", TEXT)
def test_how_far_a_batch_is_padded_changes_nothing(name):
    excepted = CANNOT_KNOW.get(name, NOTHING)
    different = assert_same(sums_of(name, [(ALL, 4, False)]), sums_of(name, AS_IT_IS), excepted)
    assert bool(different) == (name in CANNOT_KNOW)


@pytest.mark.parametrize("name", [name for name in TEXT if name not in NOT_ON_THE_LEFT])
def test_the_side_of_the_padding_changes_nothing(name):
    expected = sums_of(name, AS_IT_IS)
    for extra in (0, 4):
        assert_same(sums_of(name, [(ALL, extra, True)]), expected, CANNOT_KNOW.get(name, NOTHING))


@pytest.mark.parametrize("name", TEXT)
def test_without_any_padding_the_sums_are_the_same(name):
    one_by_one = [((i,), 0, False) for i in ALL]
    excepted = CANNOT_KNOW.get(name, ONCE_A_CALL.get(name, NOTHING))
    assert_same(sums_of(name, one_by_one), sums_of(name, AS_IT_IS), excepted)


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_keep_the_law(name):
    expected = sums_of(name, AS_IT_IS, "adafisher")
    assert any("experts" in module for module in expected)
    for batches in ([(ALL, 4, False)], [(ALL, 4, True)], [((i,), 0, False) for i in ALL]):
        assert_same(sums_of(name, batches, "adafisher"), expected, NOTHING)
