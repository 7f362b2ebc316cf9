"""The orthogonal structure: what it does with which matrix, and what it is where it can be known."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adafisher_hf import AdaFisherW
from adafisher_hf.layers.fused import Fused
from adafisher_hf.preconditioners.iterations import ITERATIONS, iteration_names, load_iteration
from adafisher_hf.preconditioners.newton_schulz import orthogonalised
from adafisher_hf.preconditioners.orthogonal import Orthogonalised
from adafisher_hf.preconditioners.quotient import Quotient
from tests.models import next_token_loss, tiny, tiny_batches


def polar(x):
    """The nearest matrices with orthonormal rows or columns, by a singular value decomposition."""
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh


def exact(x, steps):
    return polar(x)


@pytest.mark.parametrize("name", iteration_names())
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 20), (2, 1, 5)])
def test_singular_values_come_near_1(name, shape):
    torch.manual_seed(0)
    spectrum = torch.logspace(-1.2, 0, shape[-2], dtype=torch.float64)
    x = spectrum.diag() @ polar(torch.randn(shape, dtype=torch.float64))
    values = torch.linalg.svdvals(orthogonalised(x, load_iteration(name), 6)) / shape[-1] ** 0.5
    assert values.min() > 0.5 and values.max() < 1.3


def test_polar_express_converges_where_the_quintic_does_not():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 9, dtype=torch.float64)
    error = {
        name: (orthogonalised(x, load_iteration(name), 12) / 3 - polar(x)).abs().max() for name in iteration_names()
    }
    assert error["polar_express"] < 1e-6 < 0.05 < error["newton_schulz"]


@pytest.mark.parametrize("name", iteration_names())
def test_nothing_stays_nothing_and_scale_is_forgotten(name):
    iteration = load_iteration(name)
    assert orthogonalised(torch.zeros(1, 3, 5), iteration, 5).eq(0).all()
    x = torch.randn(1, 3, 5, dtype=torch.float64)
    for scale in (1e-30, 1e30):
        torch.testing.assert_close(orthogonalised(scale * x, iteration, 5), orthogonalised(x, iteration, 5))


def direction(rows, cols, fused=None, output_dim=-2, iteration=exact, stack=1):
    like = torch.ones((), dtype=torch.float64)
    quotient = Quotient(like.expand(1, stack, rows), like.expand(1, stack, cols), like.expand(1, 1, 1))
    return Orthogonalised(quotient, iteration, 5, fused, output_dim)


@given(rows=st.integers(1, 6), cols=st.integers(1, 6), stack=st.integers(1, 3), seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_every_matrix_of_a_stack_is_orthogonalised_by_itself(rows, cols, stack, seed):
    x = torch.randn(stack, rows, cols, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = torch.stack([polar(matrix) for matrix in x]) * max(rows, cols) ** 0.5
    torch.testing.assert_close(direction(rows, cols, stack=stack).apply(x), expected)


@pytest.mark.parametrize("output_dim", [-2, -1])
@pytest.mark.parametrize("fused", [Fused(1, (4, 2, 2)), Fused(2, (2, 1, 1))])
def test_a_fused_projection_moves_as_its_parts_would(fused, output_dim):
    """Each part as a matrix of its own, all of them with the same mean square."""
    torch.manual_seed(0)
    x = torch.randn(1, 8, 5, dtype=torch.float64)
    x = x if output_dim == -2 else x.mT
    parts = fused.split(x, output_dim)
    expected = fused.join([polar(part) * max(part.shape) ** 0.5 for part in parts], output_dim)
    whole = direction(*x.shape[1:], fused, output_dim).apply(x.contiguous())
    torch.testing.assert_close(whole, expected)
    assert not torch.allclose(whole, direction(*x.shape[1:]).apply(x.contiguous()))


def test_many_at_once_are_what_each_is_alone():
    torch.manual_seed(0)
    shapes = [(3, 5), (5, 3), (3, 5), (4, 4)]
    directions = [direction(*shape, iteration=load_iteration("newton_schulz")) for shape in shapes]
    momenta = [torch.randn(1, *shape, dtype=torch.float64) for shape in shapes]
    out = [torch.empty_like(momentum) for momentum in momenta]
    Orthogonalised.apply_all(directions, momenta, out, [])
    for one, momentum, quotient in zip(directions, momenta, out, strict=True):
        torch.testing.assert_close(quotient, one.apply(momentum))


def steps(model, count=4, **knobs):
    optimizer = AdaFisherW(model, lr=1e-2, update_warmup=2, update_interval=2, **knobs)
    for ids in tiny_batches(count):
        optimizer.zero_grad()
        next_token_loss(model, ids).backward()
        optimizer.step()
    return optimizer


def test_the_divided_momentum_is_orthogonalised_and_keeps_the_momentum_s_length():
    """u = NS(a / F̂) · ‖a‖ / ‖NS(a / F̂)‖ with a the bias-corrected Nesterov momentum over σ, in one step from zero."""
    model = tiny(dtype=torch.float64)
    before = copy.deepcopy(model.up.weight.detach())
    optimizer = AdaFisherW(model, lr=1e-2, structure="orthogonal", beta=0.8, token_stride=1)
    next_token_loss(model, tiny_batches(1)[0]).backward()
    grad = model.up.weight.grad.clone()
    optimizer.step()
    a = grad / grad.square().mean().sqrt()  # m̂ is g: (0.8 · 0.2 + 0.2) g / (1 - 0.8²)
    u = orthogonalised(_wide(a / optimizer.curvature(model.up.weight)), load_iteration("newton_schulz"), 5)[0]
    u = u if u.shape == a.shape else u.mT
    torch.testing.assert_close(before - model.up.weight, 1e-2 * u * a.norm() / u.norm())


def _wide(x):
    return (x if x.shape[0] <= x.shape[1] else x.mT).unsqueeze(0)


def test_nesterov_looks_one_step_ahead():
    """The momentum that the next step would have if the gradient came again, with its own bias correction."""
    torch.manual_seed(0)
    weights = {ahead: nn.Parameter(torch.ones(3, dtype=torch.float64)) for ahead in (True, False)}
    holders = {ahead: nn.ParameterDict({"weight": weight}) for ahead, weight in weights.items()}
    gradients = torch.randn(4, 3, dtype=torch.float64)
    for ahead, holder in holders.items():
        optimizer = AdaFisherW(holder, lr=1e-2, beta=0.7, nesterov=ahead, update_warmup=0, update_interval=1000)
        for i, gradient in enumerate(gradients):
            weights[ahead].grad = gradient
            momentum = optimizer.state[weights[ahead]]["exp_avg"].clone() if i else torch.zeros(3, dtype=torch.float64)
            before = weights[ahead].detach().clone()
            optimizer.step()
            m = 0.7 * momentum + 0.3 * gradient
            a = (0.7 * m + 0.3 * gradient) / (1 - 0.7 ** (i + 2)) if ahead else m / (1 - 0.7 ** (i + 1))
            sigma_sq = optimizer.state[weights[ahead]]["sigma_sq"] / (1 - 0.95 ** (i + 1))
            u = a / optimizer.curvature(weights[ahead])
            expected = before - 1e-2 * u * a.norm() / u.norm() / sigma_sq.sqrt()
            torch.testing.assert_close(weights[ahead].detach(), expected)


def test_without_hidden_matrices_and_ahead_it_is_the_diagonal_structure():
    diagonal, excluded = tiny(dtype=torch.float64), tiny(dtype=torch.float64)
    steps(diagonal, structure="diagonal")
    options = dict(beta=0.9, nesterov=False, narrow_side=False, orthogonal_exclude="*", token_stride=1)
    steps(excluded, structure="orthogonal", **options)
    for a, b in zip(diagonal.parameters(), excluded.parameters(), strict=True):
        assert torch.equal(a, b)


def test_tables_are_those_of_the_kronecker_structure_on_their_narrow_side():
    model = tiny()
    optimizer = steps(model, structure="orthogonal")
    embedding, hidden = optimizer.state[model.embed.weight], optimizer.state[model.up.weight]
    assert model.embed.weight.shape[0] > model.embed.weight.shape[1]
    assert "col_basis" in embedding and "row_basis" not in embedding
    assert not {"col_basis", "row_basis"} & set(hidden)


def test_an_iteration_of_one_s_own(monkeypatch):
    monkeypatch.setitem(ITERATIONS, "exact", exact)
    model, reference = tiny(dtype=torch.float64), tiny(dtype=torch.float64)
    steps(model, structure="orthogonal", iteration="exact")
    steps(reference, structure="orthogonal", iteration="polar_express", iteration_steps=30)
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_a_pattern_that_fits_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"'\*\.uq\.\*' fits no parameter of the model: they have names such as '"):
        AdaFisherW(tiny(), structure="orthogonal", orthogonal_exclude="up.*|*.uq.*")


def test_an_excluded_matrix_is_divided_only():
    model = tiny()
    optimizer = steps(model, structure="orthogonal", orthogonal_exclude="up.*")
    rows = {row.name: row for row in optimizer.coverage_rows()}
    assert (rows["up.weight"].role, rows["up.weight"].treatment) == ("excluded", "diagonal")
    assert (rows["down.weight"].role, rows["down.weight"].treatment) == ("hidden", "orthogonalised")
