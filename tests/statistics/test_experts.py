"""Experts in one tensor train as the same experts in Linear layers of their own."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import GptOssConfig, MixtralConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from adafisher_hf import AdaFisherW, coverage
from adafisher_hf.layers.experts import IMPLEMENTATION

SIZES = dict(hidden_size=5, intermediate_size=4, num_local_experts=3, num_experts_per_tok=2)
CONFIGS = {"mixtral": (MixtralConfig, MixtralExperts), "gpt-oss": (GptOssConfig, GptOssExperts)}
STRUCTURES = {
    "diagonal": {},
    "strided": {"token_stride": 3},
    "kronecker": {"structure": "kronecker", "token_stride": 1, "basis_interval": 2},
    "automatic": {"structure": "kronecker", "basis_interval": 2},
    "paper": {"mode": "paper", "lr": 1e-6},
}


class Stacked(nn.Module):
    """The module of transformers."""

    def __init__(self, name, implementation=IMPLEMENTATION):
        super().__init__()
        config, cls = CONFIGS[name]
        self.experts = cls(config(**SIZES, experts_implementation=implementation)).double()
        torch.manual_seed(0)
        for parameter in self.experts.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, x, index, weights, attention_mask=None):
        return self.experts(x, index, weights)


class Apart(nn.Module):
    """The same with a pair of Linear layers for each expert."""

    def __init__(self, stacked):
        super().__init__()
        source = stacked.experts
        self.activate = source._apply_gate
        self.up = nn.ModuleList(self.linear(source, "gate_up_proj", i) for i in range(3))
        self.down = nn.ModuleList(self.linear(source, "down_proj", i) for i in range(3))

    def linear(self, source, name, i):
        weight = getattr(source, name).detach()[i]
        weight = weight.T if source.is_transposed else weight
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=source.has_bias).double()
        layer.weight.data.copy_(weight)
        if source.has_bias:
            layer.bias.data.copy_(getattr(source, f"{name}_bias")[i])
        return layer

    def forward(self, x, index, weights):
        out = torch.zeros_like(x)
        for i in range(3):
            token, place = (index == i).nonzero().unbind(1)
            order = torch.argsort(token * 2 + place)
            token, place = token[order], place[order]
            y = self.down[i](self.activate(self.up[i](x[token])))
            out = out.index_add(0, token, y * weights[token, place, None])
        return out


def batch(step, tokens=24):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(tokens, 5, generator=generator, dtype=torch.float64)
    index = torch.rand(tokens, 3, generator=generator).argsort(1)[:, :2]
    return x, index, torch.rand(tokens, 2, generator=generator, dtype=torch.float64)


def train(model, knobs, steps=8):
    optimizer = AdaFisherW(model, **{"lr": 1e-2, "update_warmup": 2, "update_interval": 2, **knobs})
    for step in range(steps):
        optimizer.zero_grad()
        model(*batch(step)).sin().square().sum().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("structure", [name for name in STRUCTURES if name not in ("strided", "automatic")])
@pytest.mark.parametrize("name", CONFIGS)
def test_they_train_as_linear_layers_do(name, structure):
    stacked = Stacked(name)
    apart = Apart(stacked)
    train(stacked, STRUCTURES[structure])
    train(apart, STRUCTURES[structure])
    again = Apart(stacked)
    for found, expected in zip(again.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_block_is_captured_and_the_output_is_transformers_own(name, structure):
    stacked, eager = Stacked(name), Stacked(name, "eager")
    optimizer = train(stacked, STRUCTURES[structure], steps=1)
    assert {row.kind for row in coverage(stacked)} == {"experts"}
    assert {row.kind for row in coverage(eager)} == {"gradient"}
    assert all(tap.sums is None for tap in optimizer._statistics._taps.values())  # taken, not left
    eager.load_state_dict(stacked.state_dict())
    torch.testing.assert_close(stacked(*batch(9)), eager(*batch(9)))
    optimizer.close()
    assert not stacked.experts._adafisher_taps
    torch.testing.assert_close(stacked(*batch(9)), eager(*batch(9)))


def test_padding_is_left_out():
    x, index, weights = batch(0)
    mask = torch.ones(4, 6, dtype=torch.long)
    mask[1, 3:] = mask[3, 1:] = 0
    kept = mask.flatten().bool()

    def curvature(*inputs, **mask):
        model = Stacked("gpt-oss")
        optimizer = AdaFisherW(model)
        output = model(*inputs, **mask)
        (output * kept[:, None] if mask else output).sin().square().sum().backward()
        optimizer.step()
        return [optimizer.curvature(parameter) for parameter in model.parameters()]

    padded = curvature(x, index, weights, attention_mask=mask)
    for found, expected in zip(padded, curvature(x[kept], index[kept], weights[kept]), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_second_optimizer_takes_its_own_statistics():
    model = Stacked("mixtral")
    first = AdaFisherW(model)
    second = AdaFisherW(model)
    first.close()
    model(*batch(0)).sin().square().sum().backward()
    assert all(tap.sums is not None for tap in second._statistics._taps.values())
    assert all(tap.sums is None for tap in first._statistics._taps.values())


def test_copies_run_without_taps():
    model = Stacked("mixtral")
    optimizer = AdaFisherW(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(twin(*batch(0)), model(*batch(0)))
        own = AdaFisherW(twin)
        assert own._statistics.closed is False and len(twin.experts._adafisher_taps) == 2
    assert len(model.experts._adafisher_taps) == 2 and not optimizer._statistics.closed


def test_no_tokens():
    x, index, weights = batch(0)
    assert Stacked("mixtral")(x[:0], index[:0], weights[:0]).shape == (0, 5)


def test_an_expert_without_tokens_keeps_its_curvature():
    model = Stacked("mixtral")
    optimizer = train(model, {"update_interval": 1}, steps=1)
    before = optimizer.curvature(model.experts.down_proj).clone()
    x, index, weights = batch(1)
    model(x, index % 2, weights).sin().square().sum().backward()  # nothing goes to the third
    optimizer.step()
    after = optimizer.curvature(model.experts.down_proj)
    assert torch.equal(after[2], before[2]) and not torch.equal(after[0], before[0])
