"""The two seams of an estimator: a weight for every token's δ, and a backward pass for the statistics alone."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from adafisher_hf import AdaFisherW
from adafisher_hf.statistics.estimators import ESTIMATORS, make_estimator
from adafisher_hf.statistics.estimators.base import Estimator
from adafisher_hf.statistics.estimators.sampled import Sampled
from tests.models import Routed, llama, tiny

IDS = torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(1))


class FirstTokens(Estimator):
    """Only the first two tokens of every sequence count."""

    weighs_tokens = True

    def token_weights(self, logits_grad):
        weights = torch.zeros(IDS.shape)
        weights[:, :2] = 1.0
        return weights.view(logits_grad.shape[:-1])


class FixedLabels(Estimator):
    """The statistics of a loss with other labels than the training's."""

    has_own_pass = True

    def own_loss(self, logits, mask):
        return other_loss(logits)


def other_loss(logits):
    return nn.functional.cross_entropy(logits.flatten(0, -2), torch.zeros(logits[..., 0].numel(), dtype=torch.long))


def training_loss(logits, ids):
    return nn.functional.cross_entropy(logits.flatten(0, -2), ids.flatten().roll(1))


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    toys = {"first": FirstTokens, "fixed": FixedLabels}
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


@pytest.mark.parametrize("estimator", ["first", "improved"])
def test_weights_reach_every_layer_and_its_head(estimator):
    model = tiny()
    deltas = watch(model)
    optimizer = AdaFisherW(model, estimator=estimator)
    logits = model(IDS)
    logits.retain_grad()
    training_loss(logits, IDS).backward()
    weights = make_estimator(estimator).token_weights(logits.grad)
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
    optimizer = AdaFisherW(model, estimator="improved")
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
    monkeypatch.setattr(FixedLabels, "own_loss", lambda self, logits, mask: (calls.append(1), other_loss(logits))[1])
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


# The improved Fisher -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [1, 2])
def test_improved_is_the_gradient_over_that_of_the_logits(batches):
    """Against p - y by hand; tokens without a label weigh nothing, and the number of them changes nothing."""
    model = tiny()
    deltas = watch(model)
    optimizer = AdaFisherW(model, estimator="improved")
    labels = IDS.roll(1, 1)
    labels[0, 1:4] = -100
    expected = dict.fromkeys(("up", "down", "head"), 0.0)
    for ids, targets in zip(IDS.chunk(batches), labels.chunk(batches), strict=True):
        logits = model(ids)
        nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        known = targets != -100
        errors = logits.softmax(-1) - nn.functional.one_hot(targets.clamp(min=0), logits.shape[-1])
        weights = known * known.sum() / errors.norm(dim=-1)  # the loss is a mean over the known ones
        for name, delta in deltas.items():
            expected[name] = expected[name] + (delta * weights.unsqueeze(-1)).square().sum((0, 1))
    for name, sums in measured(model, optimizer).items():
        torch.testing.assert_close(sums[0], expected[name], rtol=1e-9, atol=0.0)


def image_classifier():
    sizes = dict(image_size=4, patch_size=2, num_channels=1, hidden_size=8, intermediate_size=8)
    return ViTForImageClassification(ViTConfig(num_hidden_layers=1, num_attention_heads=2, num_labels=3, **sizes))


def small_gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2))


def adapted():
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(llama(vocab_size=11), config)


@pytest.mark.parametrize("estimator", ["improved", "sampled"])
@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: llama(vocab_size=11), {"input_ids": IDS, "labels": IDS}),
        (small_gpt2, {"input_ids": IDS, "labels": IDS}),
        (image_classifier, {"pixel_values": torch.randn(3, 1, 4, 4), "labels": torch.tensor([0, 1, 2])}),
        (adapted, {"input_ids": IDS, "labels": IDS}),
    ],
    ids=["llama", "gpt2", "vit", "lora"],
)
def test_models_of_transformers(make, inputs, estimator):
    torch.manual_seed(0)
    model, plain = make(), make()
    plain.load_state_dict(model.state_dict())
    curvatures = []
    for subject, name in ((model, estimator), (plain, "empirical")):
        optimizer = AdaFisherW(subject, estimator=name)
        for _ in range(2):  # LoRA's A has no gradient in the first step
            optimizer.zero_grad()
            subject(**inputs).loss.backward()
            optimizer.step()
        found = [optimizer.curvature(p) for p in subject.parameters() if p.requires_grad and p.dim() == 2]
        assert all(torch.isfinite(part).all() for part in found)
        curvatures.append(found)
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(*curvatures, strict=True))


@pytest.mark.parametrize("estimator", ["improved", "sampled"])
def test_a_loss_without_logits_is_one_error(estimator):
    class Fused(nn.Module):
        """The head's weight is used, the head is not called."""

        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return nn.functional.cross_entropy(self.body(x) @ self.head.weight.T, torch.zeros(4, dtype=torch.long))

    model = Fused()
    optimizer = AdaFisherW(model, estimator=estimator)
    with pytest.raises(ValueError, match=f"estimator={estimator} needs the logits of all tokens .*use_liger_kernel"):
        model(torch.randn(4, 6)).backward()
    optimizer.close()


def test_a_head_that_is_called_in_pieces_is_one_error():
    class Chunked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return torch.stack([self.head(part).logsumexp(-1).sum() for part in self.body(x).chunk(2, 1)]).sum()

    model = Chunked()
    optimizer = AdaFisherW(model, estimator="improved")
    with pytest.raises(ValueError, match="a layer with 16 tokens, 8 rows of logits"):
        model(torch.randn(4, 4, 6)).backward()
    optimizer.close()


def test_two_kinds_of_tokens_are_refused():
    model = T5ForConditionalGeneration(T5Config(vocab_size=11, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="the encoder's tokens have none: use estimator=sampled"):
        AdaFisherW(model, estimator="improved")


# The sampled one -----------------------------------------------------------------------------------------------------


def test_sampled_is_the_fisher_in_expectation():
    """Against the sum over all labels that the model might have drawn, at four standard errors of the mean."""
    model = tiny()
    deltas = watch(model)
    logits = model(IDS)
    exact = dict.fromkeys(("up", "down", "head"), 0.0)
    for label in range(logits.shape[-1]):
        chosen = torch.full(IDS.shape, label).flatten()
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), chosen, reduction="none")
        losses.mean().backward(retain_graph=True)
        for name, delta in deltas.items():
            drawn = logits.softmax(-1)[..., label, None].detach()
            exact[name] = exact[name] + (drawn * delta.square()).sum((0, 1))
    torch.manual_seed(1)
    optimizer = AdaFisherW(model, estimator="sampled", update_warmup=10**6)
    draws: dict[str, list[torch.Tensor]] = {name: [] for name in exact}
    for _ in range(400):
        model(IDS)
        for name, sums in measured(model, optimizer).items():
            draws[name].append(sums[0])
        for tap in optimizer._statistics.taps:
            tap.take()
    for name, expected in exact.items():
        found = torch.stack(draws[name])
        error = found.std(0) / len(found) ** 0.5
        assert ((found.mean(0) - expected).abs() < 4 * error).all()
        assert (error < 0.1 * expected).all()


def test_one_output_is_the_mean_of_a_normal_distribution():
    torch.manual_seed(0)
    logits = torch.zeros(20_000, 1, requires_grad=True)
    Sampled().own_loss(logits, None).backward()
    delta = logits.grad * len(logits)
    assert delta.mean().abs() < 0.03 and delta.std() == pytest.approx(1, abs=0.03)


def test_padding_draws_no_labels(monkeypatch):
    monkeypatch.setattr(torch.distributions.Categorical, "sample", lambda self: self.logits.argmin(-1))
    sums = []
    for ids, mask in (
        (IDS, None),
        (torch.cat([IDS, torch.full((4, 3), 10)], 1), torch.tensor([[1] * 5 + [0] * 3] * 4)),
    ):
        torch.manual_seed(0)
        model = llama(vocab_size=11).double()
        optimizer = AdaFisherW(model, estimator="sampled")
        model(input_ids=ids, attention_mask=mask)
        sums.append([tap.sums.output for tap in optimizer._statistics.taps])
    for own, padded in zip(*sums, strict=True):
        torch.testing.assert_close(padded, own, rtol=1e-6, atol=1e-12)


def test_several_labels_an_example_are_refused():
    model = llama()
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="draws one label an example"):
        AdaFisherW(model, estimator="sampled")
