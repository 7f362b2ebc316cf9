"""The two seams of an estimator: a weight for every token's δ, and a backward pass for the statistics alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adafisher_hf import AdaFisherW
from adafisher_hf.statistics.estimators import ESTIMATORS, Estimator
from tests.models import Routed, llama, tiny

IDS = torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(1))


class FirstTokens(Estimator):
    """Only the first two tokens of every sequence count."""

    weighs_tokens = True

    def token_weights(self, logits_grad):
        weights = torch.zeros(IDS.shape)
        weights[:, :2] = 1.0
        return weights.view(logits_grad.shape[:-1])


class Confident(Estimator):
    """Improved Fisher's weights: 1 / ‖∂ℓ/∂z‖ of every token or example."""

    weighs_tokens = True

    def token_weights(self, logits_grad):
        return 1 / logits_grad.norm(dim=-1)


class FixedLabels(Estimator):
    """The statistics of a loss with other labels than the training's."""

    has_own_pass = True

    def own_loss(self, logits):
        return other_loss(logits)


def other_loss(logits):
    return nn.functional.cross_entropy(logits.flatten(0, -2), torch.zeros(logits[..., 0].numel(), dtype=torch.long))


def training_loss(logits, ids):
    return nn.functional.cross_entropy(logits.flatten(0, -2), ids.flatten().roll(1))


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    toys = {"first": FirstTokens, "confident": Confident, "fixed": FixedLabels}
    for name, toy in toys.items():
        monkeypatch.setitem(ESTIMATORS, name, toy)


def watch(model):
    """δ of every linear layer, by name, as it arrives."""
    deltas = {}

    def keep(name, module, args, output):
        output.register_hook(lambda grad: deltas.__setitem__(name, grad.clone()))

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, a, o, name=name: keep(name, m, a, o))
    return deltas


def measured(model, optimizer):
    """Σδ² of every linear layer's tap."""
    modules = {id(module): name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    taps = optimizer._statistics._taps
    return {modules[key]: tap.sums.output for key, tap in taps.items() if key in modules}


@pytest.mark.parametrize("estimator", ["first", "confident"])
def test_weights_reach_every_layer_and_its_head(estimator):
    model = tiny()
    deltas = watch(model)
    optimizer = AdaFisherW(model, estimator=estimator)
    logits = model(IDS)
    logits.retain_grad()
    training_loss(logits, IDS).backward()
    weights = ESTIMATORS[estimator]().token_weights(logits.grad)
    sums = measured(model, optimizer)
    assert sums.keys() == deltas.keys() == {"up", "down", "head"}
    for name, delta in deltas.items():
        expected = (delta * weights.unsqueeze(-1)).square().sum((0, 1))
        torch.testing.assert_close(sums[name][0], expected, rtol=1e-9, atol=0.0)
    optimizer.step()
    assert torch.isfinite(optimizer.curvature(model.up.weight)).all()


def test_weights_of_examples_count_for_all_their_tokens():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.up, self.head = nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, ids):
            return self.head(self.up(self.embed(ids)).tanh().mean(1))

    torch.manual_seed(0)
    model = Classifier().double()
    deltas = watch(model)
    optimizer = AdaFisherW(model, estimator="confident")
    logits = model(IDS)
    logits.retain_grad()
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    weights = 1 / logits.grad.norm(dim=-1)
    sums = measured(model, optimizer)
    up = (deltas["up"] * weights[:, None, None]).square().sum((0, 1))
    torch.testing.assert_close(sums["up"][0], up, rtol=1e-9, atol=0.0)
    head = (deltas["head"] * weights[:, None]).square().sum(0)
    torch.testing.assert_close(sums["head"][0], head, rtol=1e-9, atol=0.0)


def test_experts_take_the_weights_of_their_own_tokens():
    torch.manual_seed(0)
    model = Routed().double()
    optimizer = AdaFisherW(model, estimator="first")
    training_loss(model(IDS), IDS).backward()
    first = Routed().double()
    first.load_state_dict(model.state_dict())
    other = AdaFisherW(first)
    keep = torch.zeros(IDS.shape, dtype=torch.bool)
    keep[:, :2] = True
    logits = first(IDS)
    losses = nn.functional.cross_entropy(logits.flatten(0, -2), IDS.flatten().roll(1), reduction="none")
    (losses * keep.flatten()).sum().div(IDS.numel()).backward()
    for (key, tap), theirs in zip(optimizer._statistics._taps.items(), other._statistics._taps.values(), strict=True):
        torch.testing.assert_close(tap.sums.output, theirs.sums.output, rtol=1e-9, atol=1e-18, msg=str(key))


@pytest.mark.parametrize("make", [tiny, lambda: llama(vocab_size=11).double()], ids=["module", "llama"])
def test_an_own_pass_is_the_only_one_that_counts_and_leaves_no_gradient(make):
    model, other = make(), make()
    optimizer, theirs = AdaFisherW(model, estimator="fixed"), AdaFisherW(other)

    def logits(model):
        output = model(IDS)
        return getattr(output, "logits", output)

    mine = logits(model)
    assert all(p.grad is None for p in model.parameters())
    training_loss(mine, IDS).backward()
    other_loss(logits(other)).backward()
    for tap, expected in zip(optimizer._statistics.taps, theirs._statistics.taps, strict=True):
        torch.testing.assert_close(tap.sums.output, expected.sums.output, rtol=1e-9, atol=0.0)
        torch.testing.assert_close(tap.sums.input, expected.sums.input, rtol=1e-9, atol=0.0)
        assert tap.sums.tokens == expected.sums.tokens
    plain = make()
    training_loss(logits(plain), IDS).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=0.0)


def test_no_own_pass_on_steps_that_do_not_refresh(monkeypatch):
    calls = []
    monkeypatch.setattr(FixedLabels, "own_loss", lambda self, logits: (calls.append(1), other_loss(logits))[1])
    model = tiny()
    optimizer = AdaFisherW(model, estimator="fixed", update_warmup=1, update_interval=3)
    for _ in range(6):
        optimizer.zero_grad()
        training_loss(model(IDS), IDS).backward()
        optimizer.step()
    assert len(calls) == 2  # steps 0 and 3


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="estimator must be one of 'empirical'"):
        AdaFisherW(tiny(), estimator="empiric")
