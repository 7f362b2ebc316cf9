"""A weight with several owners: each use counts by its own curvature, by its own tokens and by its own scale."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from adafisher_hf import AdaFisherW
from adafisher_hf.layers import Layout
from adafisher_hf.preconditioners.diagonal import Diagonal
from adafisher_hf.preconditioners.kronecker import Kronecker
from adafisher_hf.statistics.block import Use
from adafisher_hf.statistics.sums import Sums

LAYOUT = Layout((1, 4, 3))


def count(tokens):
    return torch.tensor(float(len(tokens)), dtype=torch.float64)


def uses(dense=False):
    """Of 8 and of 2 tokens, the second with larger δ."""
    torch.manual_seed(0)
    h, s = [torch.randn(n, 3).double() for n in (8, 2)], [torch.randn(8, 4).double(), torch.randn(2, 4).double() * 1.7]
    if dense:
        return [Use(Sums((a.T @ a)[None], (b.T @ b)[None], count(a)), LAYOUT) for a, b in zip(h, s, strict=True)]
    sums = [Sums(a.square().sum(0)[None], b.square().sum(0)[None], count(a)) for a, b in zip(h, s, strict=True)]
    return [Use(each, LAYOUT) for each in sums]


def exact(uses):
    """Σ_k S_k ⊗ H_k / n_k over its mean."""
    total = sum(u.sums.output[0][:, None] * u.sums.input[0][None] / u.sums.tokens for u in uses)
    return total / total.mean()


@pytest.mark.parametrize("order", [1, -1])
def test_owners_of_uneven_tokens_add_up_as_sums_over_tokens(order):
    state, both = {}, uses()[::order]
    Diagonal().init(state, [LAYOUT] * 2, torch.empty(0, dtype=torch.float64))
    Diagonal().refresh(state, both, 0.0)
    dense = Diagonal().direction(state, [LAYOUT] * 2, 0.1).dense()[0]
    torch.testing.assert_close(dense, exact(both) + 0.1, rtol=1e-12, atol=0.0)


def test_averages_of_several_refreshes_weigh_every_refresh_alike():
    """Whatever its tokens and its scale: γ alone says what a refresh counts."""
    state, gamma = {}, 0.7
    first, second = (
        uses(),
        [Use(Sums(u.sums.input * 3, u.sums.output * 1e4, u.sums.tokens * 3), LAYOUT) for u in uses()],
    )
    Diagonal().init(state, [LAYOUT] * 2, torch.empty(0, dtype=torch.float64))
    for refresh in (first, second, first):
        Diagonal().refresh(state, refresh, gamma)
    torch.testing.assert_close(
        Diagonal().direction(state, [LAYOUT] * 2, 0.1).dense()[0], exact(first) + 0.1, rtol=1e-12, atol=0.0
    )


def test_the_basis_of_a_side_is_that_of_all_owners_together():
    structure, state = Kronecker(1024, False, 0.95), {"exp_avg": torch.zeros(4, 3)}
    structure.init(state, [LAYOUT] * 2, torch.empty(0, dtype=torch.float64))
    both = uses(dense=True)
    structure.refresh(state, both, 0.0)
    structure.renew([(state, [LAYOUT] * 2)])
    for side, own, other in (("row", "output", "input"), ("col", "input", "output")):
        pooled = sum(
            getattr(u.sums, own)[0] * getattr(u.sums, other)[0].diagonal().mean() / u.sums.tokens for u in both
        )
        basis = state[f"{side}_basis"][0]
        rotated = basis.T @ pooled @ basis
        torch.testing.assert_close(rotated, rotated.diagonal().diag(), rtol=0.0, atol=1e-9 * float(rotated.max()))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_scaled_embedding_counts_by_the_square_of_its_scale(scale):
    """Beside a tied head: alone it would cancel in F / mean(F)."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = Gemma3TextScaledWordEmbedding(7, 4, padding_idx=None, embed_scale=scale)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            self.looked_up = self.embed(ids)
            self.looked_up.retain_grad()
            self.logits = self.head(self.looked_up.tanh())
            self.logits.retain_grad()
            return self.logits

    torch.manual_seed(0)
    model = Model().double()
    optimizer = AdaFisherW(model, damping=0.1, lr=0.0)
    ids = torch.randint(0, 7, (3, 5))
    model(ids).square().mean().backward()
    optimizer.step()
    frequency = torch.bincount(ids.flatten(), minlength=7).double()
    embedding = frequency[:, None] * (scale * model.looked_up.grad).flatten(0, 1).square().sum(0)
    h, delta = model.looked_up.detach().tanh().flatten(0, 1), model.logits.grad.flatten(0, 1)
    total = embedding + delta.square().sum(0)[:, None] * h.square().sum(0)
    torch.testing.assert_close(optimizer.curvature(model.embed.weight), total / total.mean() + 0.1, rtol=1e-9, atol=0.0)


def test_a_loaded_state_takes_effect_at_once():
    """The direction that was made of the old state is forgotten."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 3, bias=False).double() for _ in range(2)]
    optimizers = [AdaFisherW(layer, lr=1e-2) for layer in layers]
    for layer, optimizer in zip(layers, optimizers, strict=True):
        layer(torch.randn(6, 4, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    source, target = (o.curvature(layer.weight) for o, layer in zip(optimizers, layers, strict=True))
    assert not torch.allclose(source, target)
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    assert torch.equal(optimizers[1].curvature(layers[1].weight), source)


def test_groups_of_a_convolution_enter_the_averages_with_mean_one():
    """mean(F) over all groups is no product of means, and a refresh must not weigh more for its groups' imbalance."""
    torch.manual_seed(0)
    layout, state = Layout((2, 3, 5)), {}
    sums = Sums(torch.rand(2, 5).double(), torch.rand(2, 3).double() * torch.tensor([[1.0], [50.0]]), count(range(9)))
    Diagonal().init(state, [layout], torch.empty(0, dtype=torch.float64))
    Diagonal().refresh(state, [Use(sums, layout)], 0.0)
    mean = (state["row_factor_0"][..., None] * state["col_factor_0"][:, None]).mean()
    torch.testing.assert_close(mean, torch.ones_like(mean), rtol=1e-12, atol=0.0)
