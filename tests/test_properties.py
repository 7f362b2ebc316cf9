"""Whatever the shapes, dtypes and options: what every step must keep."""

from __future__ import annotations

import copy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adafisher_hf import AdaFisher, AdaFisherConfig, AdaFisherW
from adafisher_hf.preconditioners import PRECONDITIONERS

SIZES = st.integers(1, 7)
TAU = 0.3


@st.composite
def networks(draw):
    """A layer of a random kind and size, and an input for it."""
    kind = draw(st.sampled_from(["linear", "conv1d", "conv2d", "embedding", "layernorm"]))
    batch, length, features = draw(SIZES), draw(SIZES), draw(SIZES)
    torch.manual_seed(draw(st.integers(0, 99)))
    if kind == "linear":
        return nn.Linear(features, draw(SIZES), bias=draw(st.booleans())), torch.randn(batch, length, features)
    if kind == "embedding":
        return nn.Embedding(features + 1, draw(SIZES)), torch.randint(0, features + 1, (batch, length))
    if kind == "layernorm":
        return nn.LayerNorm(features + 1), torch.randn(batch, length, features + 1)
    groups = draw(st.integers(1, 2))
    conv, shape = (nn.Conv1d, (6,)) if kind == "conv1d" else (nn.Conv2d, (5, 6))
    options = {
        "stride": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, 2)),
        "dilation": draw(st.integers(1, 2)),
    }
    layer = conv(2 * groups, 3 * groups, 2, groups=groups, bias=draw(st.booleans()), **options)
    return layer, torch.randn(batch, 2 * groups, *shape)


@st.composite
def options(draw):
    """Knobs of the calibrated mode."""
    knobs = {
        "structure": draw(st.sampled_from(["diagonal", "kronecker", "orthogonal"])),
        "nesterov": draw(st.booleans()),
        "kernel": draw(st.sampled_from(["plain", "foreach"])),
        "beta": draw(st.floats(0, 0.99)),
        "beta2": draw(st.floats(0, 0.99)),
        "update_warmup": draw(st.integers(0, 3)),
        "update_interval": draw(st.integers(1, 3)),
        "token_stride": draw(st.integers(1, 3)),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
    }
    if knobs["structure"] == "kronecker":
        knobs["max_factor_dim"] = draw(st.sampled_from([1, 4, 1024]))
        knobs["second_moment"] = draw(st.sampled_from(["factors", "rotated"]))
        knobs["basis_interval"] = draw(st.integers(1, 3))
    return knobs


def run(layer, x, knobs, scale=1.0, steps=4, cls=AdaFisherW):
    layer = copy.deepcopy(layer)
    optimizer = cls(layer.parameters(), model=layer, lr=1e-2, damping=TAU, **knobs)
    for i in range(steps):
        optimizer.zero_grad()
        ((layer(x) - 0.1 * i).sin().square().mean() * scale).backward()
        optimizer.step()
    return layer, optimizer


@settings(max_examples=60, deadline=None)
@given(networks(), options(), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_weights_and_curvature_stay_finite_and_positive(network, knobs, dtype):
    layer, x = network
    layer, x = layer.to(dtype), x.to(dtype) if x.is_floating_point() else x
    trained, optimizer = run(layer, x, knobs)
    for p in trained.parameters():
        curvature = optimizer.curvature(p)
        assert p.dtype == dtype and torch.isfinite(p).all()
        assert curvature.shape == p.shape and torch.isfinite(curvature).all() and (curvature > 0).all()
        assert all(torch.isfinite(value).all() for value in optimizer.state[p].values())


@settings(max_examples=40, deadline=None)
@given(networks(), options(), st.sampled_from([1e-4, 1e4]), st.sampled_from([AdaFisher, AdaFisherW]))
def test_the_scale_of_the_loss_is_not_seen(network, knobs, scale, cls):
    """Without an eigenbasis: a degenerate factor's is decided by rounding."""
    layer, x = network
    layer, x = layer.double(), x.double() if x.is_floating_point() else x
    of_a_basis = PRECONDITIONERS["diagonal"].without
    knobs = {key: value for key, value in knobs.items() if key not in of_a_basis} | {"structure": "diagonal"}
    one, other = (run(layer, x, knobs, scale=s, cls=cls)[0] for s in (1.0, scale))
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-8)


@settings(max_examples=60, deadline=None)
@given(networks(), options())
def test_curvature_has_mean_one_and_the_update_the_momentums_length(network, knobs):
    """mean(F̂) = 1 + τ wherever there is curvature, and ‖u‖ = ‖m̂‖/σ (the norm graft)."""
    layer, x = network
    layer, x = layer.double(), x.double() if x.is_floating_point() else x
    knobs = {**knobs, "weight_decay": 0.0, "second_moment": "factors"} if "second_moment" in knobs else knobs
    knobs = {**knobs, "weight_decay": 0.0}
    before, _ = run(layer, x, knobs, steps=3)
    after, optimizer = run(layer, x, knobs, steps=4)
    for p, old in zip(after.parameters(), before.parameters(), strict=True):
        curvature, state = optimizer.curvature(p), optimizer.state[p]
        if state["factor_weight_0"].item() > 0 and not torch.equal(curvature, torch.ones_like(curvature)):
            torch.testing.assert_close(curvature.mean().item(), 1 + TAU, rtol=1e-9, atol=0.0)
        n = state["step"].item()
        sigma = (state["sigma_sq"] / (1 - knobs["beta2"] ** n)).sqrt().item()
        if sigma > 1e-12:
            beta, momentum = knobs["beta"], state["exp_avg"]
            if knobs["nesterov"]:
                momentum, n = beta * momentum + (1 - beta) * p.grad, n + 1
            length = momentum.norm().item() / (1 - beta**n) / sigma
            torch.testing.assert_close((p - old).norm().item(), 1e-2 * length, rtol=1e-4, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(options())
def test_options_survive_the_command_line(knobs):
    knobs.pop("weight_decay")
    config = AdaFisherConfig(**knobs)
    assert AdaFisherConfig.from_optim_args(config.to_optim_args()) == config
