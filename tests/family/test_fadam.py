"""FAdam takes the steps of pytorch-optimizer's, and of its formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adafisher_hf import FAdam
from tests.family.members import assert_close, convolutions, images
from tests.models import next_token_loss, tiny, tiny_batches

RULES = {
    "defaults": {},
    "no decay": {"weight_decay": 0.0},
    "natural": {"p": 1.0, "clip": 0.3, "eps": 1e-3, "beta1": 0.5, "beta2": 0.9},
}


def side_by_side(a, b, losses, **knobs):
    """Trains two models, with ours and with the package's, and compares them after every step."""
    theirs = pytest.importorskip("pytorch_optimizer").FAdam
    betas = (knobs.get("beta1", 0.9), knobs.get("beta2", 0.999))
    others = {key: value for key, value in knobs.items() if key not in ("beta1", "beta2")}
    wide = dict(momentum_dtype=torch.float64, fim_dtype=torch.float64)
    optimizers = FAdam(a, lr=1e-2, **knobs), theirs(b.parameters(), lr=1e-2, betas=betas, **wide, **others)
    for loss in losses:
        for model, optimizer in zip((a, b), optimizers, strict=True):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
        assert_close(a, b, 1e-13)


@pytest.mark.parametrize("knobs", RULES.values(), ids=RULES)
def test_a_transformer_as_the_package_trains_it(knobs):
    losses = [lambda model, ids=ids: next_token_loss(model, ids) for ids in tiny_batches(20)]
    side_by_side(tiny(), tiny(), losses, **knobs)


def test_a_convolutional_net_as_the_package_trains_it():
    def loss(x, y):
        return lambda model: nn.functional.cross_entropy(model(x), y)

    side_by_side(convolutions(), convolutions(), [loss(x, y) for x, y in images(20)])


def test_the_formulas():
    def rms(x):
        return x.square().mean().sqrt()

    theta = nn.Parameter(torch.randn(3, 4).double())
    optimizer = FAdam([theta], lr=0.03, weight_decay=0.2)
    expected, fisher, m = theta.detach().clone(), torch.zeros(3, 4).double(), torch.zeros(3, 4).double()
    for t in range(1, 8):
        g = torch.randn(3, 4).double() * 10.0**-t  # from t = 7 on the gradient is what limits ε
        beta2 = 0.999 * (1 - 0.999 ** (t - 1)) / (1 - 0.999**t)
        fisher = beta2 * fisher + (1 - beta2) * g**2
        divisor = fisher.sqrt() + min(1e-8, 0.01 * float(rms(g)))
        natural, decay = g / divisor, expected / divisor
        m = 0.9 * m + 0.1 * natural / max(1, float(rms(natural)))
        expected = expected - 0.03 * (m + 0.2 * decay / max(1, float(rms(decay))))
        theta.grad = g
        optimizer.step()
        torch.testing.assert_close(theta.detach(), expected, rtol=1e-12, atol=1e-12)


def test_a_gradient_of_zeros_is_no_division_by_zero():
    theta = nn.Parameter(torch.ones(3))
    optimizer = FAdam([theta, other := nn.Parameter(torch.ones(2))], lr=0.1, weight_decay=0.0)
    theta.grad, other.grad = torch.zeros(3), torch.ones(2)
    optimizer.step()
    assert theta.tolist() == [1, 1, 1] and other.isfinite().all() and other[0] < 1


def test_groups_have_rates_and_decays_of_their_own():
    def after(**group):
        theta, other = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        optimizer = FAdam([{"params": [other]}, {"params": [theta], **group}], lr=0.1)
        theta.grad = other.grad = torch.arange(1.0, 4)
        optimizer.step()
        return theta.detach(), other.detach()

    theta, other = after(lr=0.2, weight_decay=0.0, clip=0.5)
    alone = nn.Parameter(torch.ones(3))
    optimizer = FAdam([alone], lr=0.2, weight_decay=0.0, clip=0.5)
    alone.grad = torch.arange(1.0, 4)
    optimizer.step()
    assert torch.equal(theta, alone) and not torch.equal(theta, other)
