"""What happens to a model after its optimizer was made: nothing is lost without a word."""

from __future__ import annotations

import copy
import io
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.func import functional_call, grad, vmap

from adafisher_hf import AdaFisherW
from tests.models import llama, next_token_loss, tiny, tiny_batches
from tests.test_invariance import STRUCTURES, every_structure

IDS = torch.arange(2, 14).view(2, 6)


def state_of(optimizer):
    return [value.clone() for state in optimizer.state.values() for _, value in sorted(state.items())]


@every_structure
def test_a_second_step_without_a_backward_pass_refreshes_nothing(structure):
    """It still takes a step along the gradients that are there."""
    model = tiny()
    optimizer = AdaFisherW(model, **STRUCTURES[structure])
    next_token_loss(model, tiny_batches(1)[0]).backward()
    optimizer.step()
    factors = {k: v.clone() for k, v in optimizer.state[model.up.weight].items() if "factor" in k}
    before = model.up.weight.detach().clone()
    optimizer.step()
    for key, value in factors.items():
        assert torch.equal(optimizer.state[model.up.weight][key], value), key
    assert not torch.equal(before, model.up.weight)


def test_zeroed_gradients_of_a_discarded_pass_leave_no_statistics():
    """As set_to_none=False leaves them, on the CPU."""
    model, clean = tiny(), tiny()
    optimizers = [AdaFisherW(m) for m in (model, clean)]
    first, second = tiny_batches(2)
    next_token_loss(model, first).backward()
    model.zero_grad(set_to_none=False)
    for m, optimizer in zip((model, clean), optimizers, strict=True):
        next_token_loss(m, second).backward()
        optimizer.step()
    for one, other in zip(*map(state_of, optimizers), strict=True):
        assert torch.equal(one, other)


def test_a_model_that_was_compiled_and_run_first_is_warned_of(caplog):
    model = llama()
    compiled = torch.compile(model, backend="eager")
    compiled(input_ids=IDS, labels=IDS).loss.backward()
    model.zero_grad()
    optimizer = AdaFisherW(model)
    for _ in range(2):
        compiled(input_ids=IDS, labels=IDS).loss.backward()
        with caplog.at_level(logging.WARNING):
            optimizer.step()
        optimizer.zero_grad()
    told = [record for record in caplog.records if "no layer was measured" in record.message]
    assert len(told) == 1


def test_adapters_that_come_later_are_refused_at_the_step():
    model = llama()
    optimizer = AdaFisherW(model)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    with pytest.raises(ValueError, match=r"nothing to update: .*lora_A.*get_peft_model"):
        optimizer.step()


def test_a_resized_embedding_is_refused_at_the_step():
    model = llama(vocab_size=32)
    optimizer = AdaFisherW(model)

    def step():
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()

    step()
    model.resize_token_embeddings(40)
    with pytest.raises(ValueError, match="after the optimizer was made"):
        step()


@pytest.mark.parametrize("keep", ["saved", "copied"])
@every_structure
def test_a_hooked_model_is_saved_and_copied_without_its_hooks(structure, keep):
    model = tiny()
    optimizer = AdaFisherW(model, **STRUCTURES[structure])
    next_token_loss(model, tiny_batches(1)[0]).backward()
    optimizer.step()
    if keep == "saved":
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
        assert len(buffer.getvalue()) < 20_000, "curvature went along"
    else:
        twin = copy.deepcopy(model)
    before = state_of(optimizer)
    next_token_loss(twin, tiny_batches(1)[0]).backward()
    assert not optimizer._statistics.fired()
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(optimizer), strict=True))
    AdaFisherW(twin)
    hooks = [h for m in twin.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    assert not any(getattr(getattr(hook, "__self__", hook), "retired", False) for hook in hooks)


def test_function_transforms_between_backward_and_step_are_not_seen():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    optimizer = AdaFisherW(model, structure="kronecker")
    x = torch.randn(6, 3, dtype=torch.float64)
    model(x).square().sum().backward()
    before = [tap.sums.output.clone() for tap in optimizer._statistics.taps]
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, x):
        return functional_call(model, weights, (x,)).square().sum()

    per_sample = vmap(grad(loss), (None, 0))(weights, x)
    assert per_sample["0.weight"].shape == (6, 4, 3)
    torch.func.jvp(lambda w: loss(w, x), (weights,), (weights,))
    for tap, sums in zip(optimizer._statistics.taps, before, strict=True):
        assert torch.equal(tap.sums.output, sums)
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


class ByHand(nn.Module):
    """A layer whose forward never runs, so that its hooks see nothing."""

    def __init__(self):
        super().__init__()
        self.layer, self.raw = nn.Linear(4, 3), nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return nn.functional.linear(x @ self.raw, self.layer.weight, self.layer.bias)


def test_a_model_that_no_hook_sees_refreshes_from_its_gradients_every_time(caplog):
    model = ByHand()
    optimizer = AdaFisherW(model)
    weights = []
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        with caplog.at_level(logging.WARNING):
            optimizer.step()
        weights.append(optimizer.state[model.layer.weight]["factor_weight_0"].item())
    assert weights[0] < weights[1] < weights[2]
    assert sum("no layer was measured" in record.message for record in caplog.records) == 1


def test_parameters_without_a_layer_refresh_when_all_layers_are_frozen():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.raw = nn.Linear(4, 3), nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return self.layer(x @ self.raw)

    model = Model()
    optimizer = AdaFisherW(model)
    weights = []
    for step in range(4):
        optimizer.zero_grad()
        model.layer.requires_grad_(step < 2)
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
        weights.append(optimizer.state[model.raw]["factor_weight_0"].item())
    assert weights == sorted(set(weights))


def test_a_step_of_another_optimizers_parameters_changes_nothing():
    model = tiny()
    mine, others = [model.up.weight], [model.down.weight]
    optimizer = AdaFisherW(mine, model=model)
    next_token_loss(model, tiny_batches(1)[0]).backward()
    optimizer.step()
    before = model.up.weight.detach().clone()
    model.zero_grad()
    others[0].grad = torch.ones_like(others[0])
    optimizer.step()
    assert torch.equal(model.up.weight, before)


def test_a_resumed_run_knows_the_tokens_of_what_was_unfrozen_late():
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    layer.bias.requires_grad_(False)
    optimizer = AdaFisherW(layer.parameters(), model=layer, structure="kronecker")

    def step():
        optimizer.zero_grad()
        layer(torch.randn(3, 8, 4)).square().sum().backward()
        optimizer.step()

    step()
    layer.bias.requires_grad_(True)
    step()
    (tap,) = optimizer._statistics.taps
    assert tap.expected == 24
    optimizer.load_state_dict(optimizer.state_dict())
    assert tap.expected == 24
