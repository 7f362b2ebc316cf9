"""Which tokens are measured: by their place and the step; every place in its turn; never by how the batch was cut."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from adafisher_hf import AdaFisherW
from adafisher_hf.statistics.choice import Choice, automatic_stride
from tests.models import Routed, llama, next_token_loss, tiny, tiny_batches

SETTINGS = {
    "automatic": {"structure": "kronecker"},
    "by 3": {"structure": "kronecker", "token_stride": 3},
    "diagonal by 2": {"token_stride": 2},
}
LENGTH = 8  # 7 tokens are predicted from: no stride divides it


def cut(model, optimizer, batches, parts):
    """Trains with every batch in so many micro-batches."""
    for ids in batches:
        optimizer.zero_grad()
        for part in ids.chunk(parts):
            (next_token_loss(model, part) / parts).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def build(setting, seed=0):
    model = tiny(seed)
    return model, AdaFisherW(model, lr=1e-2, update_warmup=4, update_interval=3, **SETTINGS[setting])


@pytest.mark.parametrize("setting", SETTINGS)
def test_one_trajectory_however_the_batch_is_cut(setting):
    batches = tiny_batches(12, shape=(8, LENGTH))
    whole, halves, single = (cut(*build(setting), batches, parts) for parts in (1, 2, 8))
    torch.testing.assert_close(halves, whole, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(single, whole, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_resumed_run_measures_the_same_tokens(setting):
    batches = tiny_batches(12, shape=(8, LENGTH))
    model, optimizer = build(setting)
    cut(model, optimizer, batches[:5], 2)
    saved = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), saved)
    straight = cut(model, optimizer, batches[5:], 2)
    saved.seek(0)
    weights, state = torch.load(saved, weights_only=True)
    resumed, second = build(setting, seed=3)
    resumed.load_state_dict(weights)
    second.load_state_dict(state)
    assert torch.equal(cut(resumed, second, batches[5:], 2), straight)


def places_of_refreshes(optimizer, layer, steps, length):
    """Which places of a sequence each refresh has measured, and what each of them weighed."""
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.eye(length).expand(2, length, length)  # place p has a 1 at p: Σ h² is the weight of each place
        layer(x).square().sum().backward()
        (tap,) = optimizer._statistics.taps
        if tap.sums is not None:
            weights = tap.sums.input[0].diagonal() if tap.sums.input.dim() == 3 else tap.sums.input[0]
            found.append((weights / 2).tolist())
        optimizer.step()
    return found


@pytest.mark.parametrize("length", [4, 7, 2])
@pytest.mark.parametrize("interval", [1, 5, 10])
def test_every_place_is_measured_in_its_turn(length, interval):
    """The first token of a sequence (where attention sinks) counts no more than the others."""
    layer = nn.Linear(length, 3, bias=False)
    optimizer = AdaFisherW(layer, token_stride=3, update_warmup=2, update_interval=interval)
    measured = places_of_refreshes(optimizer, layer, 12 * interval, length)
    for places in measured:
        stride = min(3, length)
        assert set(places) <= {0.0, float(stride)} and any(places), "each stands for three, and none is empty"
    for first in range(0, len(measured) - 5, stride):
        # From the dense phase to the sparse one the turn may leave a place out.
        totals = torch.tensor(measured[first + stride : first + 2 * stride]).sum(0)
        assert totals.tolist() == [float(stride)] * length


def test_the_automatic_stride_goes_by_the_tokens_of_a_whole_step():
    assert [automatic_stride(n, 8) for n in (3, 8, 16, 31, 32, 999)] == [1, 1, 2, 3, 4, 4]
    for parts in (1, 4):
        model = llama(vocab_size=11)
        optimizer = AdaFisherW(model, structure="kronecker")
        for ids in tiny_batches(2, shape=(8, 9)):
            optimizer.zero_grad()
            for part in ids.chunk(parts):
                model(input_ids=part, labels=part).loss.backward()
            counts = {tap.expected for tap in optimizer._statistics.taps}
            optimizer.step()
        assert counts == {72}
        up = model.model.layers[0].mlp.up_proj
        assert optimizer._statistics._taps[id(up)].stride == automatic_stride(72, 48) == 1
        narrow = optimizer._statistics._taps[id(model.model.layers[0].self_attn.k_proj)]
        assert narrow.stride == automatic_stride(72, 32) == 2


def test_the_first_refresh_measures_every_token():
    layer = nn.Linear(4, 3, bias=False)
    optimizer = AdaFisherW(layer, structure="kronecker")
    assert places_of_refreshes(optimizer, layer, 1, 4) == [[1.0] * 4]


@pytest.mark.parametrize("parts", [2, 4])
def test_experts_choose_by_the_place_of_their_tokens(parts):
    def train(parts):
        torch.manual_seed(0)
        model = Routed().double()
        optimizer = AdaFisherW(model, structure="kronecker", token_stride=2, lr=1e-2)
        for ids in tiny_batches(6, shape=(4, 5)):
            optimizer.zero_grad()
            for part in ids.chunk(parts):
                logits, labels = model(part)[:, :-1], part[:, 1:]
                nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.testing.assert_close(train(parts), train(1), rtol=1e-7, atol=1e-9)


def test_what_is_chosen_of_vectors_and_ids():
    x = torch.arange(2 * 5 * 3.0).view(1, 10, 3)  # two sequences of five tokens
    choice = Choice(stride=2, start=1, length=5)
    assert torch.equal(choice.of(x).view(2, 2, 3), x.view(2, 5, 3)[:, 1::2])
    assert torch.equal(choice.of_flat(x[0, :, 0]), x.view(2, 5, 3)[:, 1::2, 0].flatten())
