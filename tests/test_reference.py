"""``mode="reference"`` reproduces trajectories of the published optimizer, ``mode="paper"`` follows eq. 3-4."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from adafisher_hf import AdaFisher, AdaFisherW

DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "authors_trajectories.json").read_text())
ARRAYS = numpy.load(DATA / "authors_trajectories.npz")


class LayerNormNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3, bias=False)

    def forward(self, x):
        return self.b(torch.tanh(self.n(self.a(x))))


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.n, self.l = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(36, 3)

    def forward(self, x):
        return self.l(torch.relu(self.n(self.c(x))).flatten(1))


NETS = {
    "mlp_bias": lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)),
    "mlp_nobias_seq": lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False)),
    "layernorm_seq": LayerNormNet,
    "conv_bn": ConvNet,
}


@pytest.mark.parametrize("kernel", ["plain", "foreach"])
@pytest.mark.parametrize("key", CASES)
def test_golden_trajectory(key, kernel):
    case = CASES[key]
    net = NETS[case["net"]]().double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(torch.from_numpy(ARRAYS[f"{key}/init/{name}"]))
    optimizer = {"AdaFisher": AdaFisher, "AdaFisherW": AdaFisherW}[case["cls"]](
        net.parameters(),
        model=net,
        mode="reference",
        kernel=kernel,
        lr=case["lr"],
        beta=case["beta"],
        damping=case["Lambda"],
        gamma=case["gamma"],
        update_interval=case["TCov"],
        weight_decay=case["weight_decay"],
    )
    losses = []
    for x, target in zip(ARRAYS[f"{key}/x"], ARRAYS[f"{key}/t"], strict=True):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(torch.from_numpy(x)), torch.from_numpy(target))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    numpy.testing.assert_allclose(losses, ARRAYS[f"{key}/loss"], rtol=1e-9)
    for name, parameter in net.named_parameters():
        numpy.testing.assert_allclose(parameter.detach().numpy(), ARRAYS[f"{key}/final/{name}"], rtol=1e-9, atol=1e-12)


def min_max(x):
    return (x - x.min()) / (x.max() - x.min())


def test_paper_mode_is_equations_3_and_4():
    torch.manual_seed(0)
    net = nn.Linear(4, 3).double()
    optimizer = AdaFisherW(
        net.parameters(), model=net, mode="paper", lr=0.1, gamma=0.7, damping=0.05, update_interval=1
    )
    h_average, s_average = torch.zeros(5, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    momentum, weights = torch.zeros(3, 5, dtype=torch.float64), torch.cat([net.weight, net.bias[:, None]], 1).detach()
    for step in range(1, 5):
        x = torch.randn(6, 4, dtype=torch.float64)
        y = net(x)
        y.retain_grad()
        optimizer.zero_grad()
        y.square().mean().backward()
        augmented = torch.cat([x, torch.ones(6, 1, dtype=torch.float64)], 1)
        h_average = 0.7 * h_average + 0.3 * augmented.square().mean(0)
        s_average = 0.7 * s_average + 0.3 * y.grad.square().mean(0)
        correction = 1 - 0.7**step
        fisher = torch.outer(min_max(s_average / correction), min_max(h_average / correction)) + 0.05
        gradient = torch.cat([net.weight.grad, net.bias.grad[:, None]], 1)
        momentum = 0.9 * momentum + 0.1 * gradient
        weights = weights - 0.1 * momentum / (1 - 0.9**step) / fisher
        optimizer.step()
        torch.testing.assert_close(optimizer.curvature(net.weight), fisher[:, :-1], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(optimizer.curvature(net.bias), fisher[:, -1], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(net.weight.detach(), weights[:, :-1], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(net.bias.detach(), weights[:, -1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", ["paper", "reference"])
def test_without_an_owner_it_is_sgd_with_momentum(mode):
    """A parameter that no hooked module owns is stepped with F̃ = 1."""

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))

        def forward(self, x):
            return (x @ self.w).square().sum()

    torch.manual_seed(0)
    model = Bare()
    theta, momentum = model.w.detach().clone(), torch.zeros_like(model.w)
    optimizer = AdaFisher(model.parameters(), model=model, mode=mode, lr=1e-2, weight_decay=0.1)
    for step in range(1, 6):
        optimizer.zero_grad()
        model(torch.randn(2, 4, dtype=torch.float64)).backward()
        momentum = 0.9 * momentum + 0.1 * (model.w.grad + 0.1 * theta)
        theta = theta - 1e-2 * momentum / (1 - 0.9**step)
        optimizer.step()
        torch.testing.assert_close(model.w.detach(), theta, rtol=1e-12, atol=1e-14)
