"""Calibrated mode reduces to known optimizers, step by step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adafisher_hf import AdaFisherW


class Scalars(nn.Module):
    """One-element tensors: the curvature's direction is trivial, so only σ, momentum and graft are left."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.loose = nn.Parameter(torch.tensor(0.7))
        self.vector = nn.Parameter(torch.tensor([0.2]))

    def forward(self, x):
        return ((self.layer(x) * self.loose + self.vector) ** 2).mean()


@pytest.mark.parametrize("kernel", ["plain", "foreach"])
def test_one_element_tensors_are_adamw(kernel):
    torch.manual_seed(0)
    ours, theirs = Scalars().double(), Scalars().double()
    theirs.load_state_dict(ours.state_dict())
    settings = dict(lr=3e-2, weight_decay=0.1)
    optimizer = AdaFisherW(ours.parameters(), model=ours, beta=0.8, beta2=0.97, kernel=kernel, **settings)
    adamw = torch.optim.AdamW(theirs.parameters(), betas=(0.8, 0.97), eps=0.0, **settings)
    for _ in range(30):
        x = torch.randn(5, 1, dtype=torch.float64)
        for model, stepper in ((ours, optimizer), (theirs, adamw)):
            stepper.zero_grad()
            model(x).backward()
            stepper.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernel", ["plain", "foreach"])
def test_huge_damping_is_momentum_in_units_of_sigma(kernel):
    """τ → ∞ forces the curvature to a constant: u = a = m̂/σ, sign-free normalised momentum SGD a tensor."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    optimizer = AdaFisherW(model.parameters(), model=model, lr=1e-2, damping=1e12, kernel=kernel)
    theta = {p: p.detach().clone() for p in model.parameters()}
    momentum = {p: torch.zeros_like(p) for p in model.parameters()}
    sigma_sq = {p: torch.zeros((), dtype=torch.float64) for p in model.parameters()}
    for step in range(1, 8):
        optimizer.zero_grad()
        model(torch.randn(6, 4, dtype=torch.float64)).square().mean().backward()
        for p in model.parameters():
            momentum[p] = 0.9 * momentum[p] + 0.1 * p.grad
            sigma_sq[p] = 0.95 * sigma_sq[p] + 0.05 * p.grad.square().mean()
            sigma = (sigma_sq[p] / (1 - 0.95**step)).sqrt()
            theta[p] = theta[p] - 1e-2 * momentum[p] / (1 - 0.9**step) / sigma
        optimizer.step()
        for p in model.parameters():
            torch.testing.assert_close(p.detach(), theta[p], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kernel", ["plain", "foreach"])
def test_update_is_as_long_as_the_momentum(kernel):
    """Norm grafting: ‖u‖ = ‖a‖ although its direction is another one."""
    torch.manual_seed(0)
    model = nn.Linear(6, 5, bias=False).double()
    optimizer = AdaFisherW(model.parameters(), model=model, lr=1.0, beta=0.0, beta2=0.0, kernel=kernel)
    before = model.weight.detach().clone()
    model(torch.randn(9, 6, dtype=torch.float64) * torch.arange(1, 7)).square().mean().backward()
    a = model.weight.grad / model.weight.grad.square().mean().sqrt()
    optimizer.step()
    u = before - model.weight.detach()
    torch.testing.assert_close(u.norm(), a.norm(), rtol=1e-9, atol=0)
    assert nn.functional.cosine_similarity(u.flatten(), a.flatten(), dim=0) < 0.99
