"""SIRFShampoo takes the steps of its authors' package, and of its formulas, in half precision too."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from transformers import Trainer

from adafisher_hf import SIRFShampoo, SIRFShampooConfig
from tests.family.members import assert_close, convolutions, images, train
from tests.integrations.test_trainer import arguments, data
from tests.models import llama, next_token_loss, tiny, tiny_batches


def side_by_side(a, b, losses, weight_decay, update_interval):
    theirs = pytest.importorskip("sirfshampoo").SIRFShampoo
    ours = SIRFShampoo(a, lr=1e-2, batch_size=4, weight_decay=weight_decay, update_interval=update_interval)
    optimizers = ours, theirs(b, lr=1e-2, batch_size=4, kappa=weight_decay, T=update_interval)
    for loss in losses:
        for model, optimizer in zip((a, b), optimizers, strict=True):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
        assert_close(a, b, 5e-15)


@pytest.mark.parametrize(("weight_decay", "update_interval"), [(0.0, 1), (0.1, 3)])
def test_a_transformer_as_the_package_trains_it(weight_decay, update_interval):
    losses = [lambda model, ids=ids: next_token_loss(model, ids) for ids in tiny_batches(20)]
    side_by_side(tiny(), tiny(), losses, weight_decay, update_interval)


def test_a_convolutional_net_as_the_package_trains_it():
    def loss(x, y):
        return lambda model: nn.functional.cross_entropy(model(x), y)

    nets = convolutions(), convolutions()
    for net in nets:  # the package has no factor for a tensor without ways
        net.scale = nn.Parameter(net.scale.detach().reshape(1))
    side_by_side(*nets, [loss(x, y) for x, y in images(20)], 0.1, 1)


def test_a_way_of_size_one_has_no_factor_as_in_the_package():
    """Of one channel, and of one output."""

    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(48, 1)).double()

    def loss(x, y):
        return lambda model: nn.functional.mse_loss(model(x[:, :1]), y.double()[:, None])

    side_by_side(net(), net(), [loss(x, y) for x, y in images(20)], 0.1, 1)
    optimizer = SIRFShampoo(net(), batch_size=1, tensors="matrix")
    optimizer.init_state()
    assert [sum("factor_momentum" in key for key in state) for state in optimizer.state.values()] == [2, 1, 1]


def multiplied(tensor, matrices):
    """T ×_n M_n for all n."""
    for n, matrix in enumerate(matrices):
        tensor = torch.tensordot(matrix, tensor.movedim(n, 0), dims=1).movedim(0, n)
    return tensor


def unfolded(tensor, n):
    return tensor.movedim(n, 0).reshape(tensor.shape[n], -1)


def slow_step(theta, g, factors, momenta, buffer, diagonal=()):
    """The rule as it is printed, B = 6, λ = 0.01, κ = 0.1; ``diagonal``: ways that keep the diagonal alone."""
    sizes = g.shape
    scaled = multiplied(6**0.5 * g, [k.T for k in factors])
    traces = [(k.T @ k).trace() / len(k) for k in factors]
    new = []
    for n, (k, m) in enumerate(zip(factors, momenta, strict=True)):
        others = torch.tensor([trace for j, trace in enumerate(traces) if j != n]).prod()
        rows = unfolded(scaled, n)
        change = rows @ rows.T / (g.numel() / sizes[n]) + 0.01 * others * k.T @ k - torch.eye(len(k)).double()
        if n in diagonal:
            change = torch.diag(change.diagonal())
        m.mul_(0.5).add_(change, alpha=0.25)
        new.append(k @ (torch.eye(len(k)).double() - 0.05 / max(1, float(m.norm())) * m))
    u = multiplied(g, [k @ k.T for k in new]) + 0.1 * theta
    buffer.mul_(0.8).add_(u)
    return theta - 0.1 * buffer, new


@pytest.mark.parametrize("limit", [10, 3], ids=["dense", "long ways diagonal"])
def test_the_formulas(limit):
    theta = nn.Parameter(torch.randn(2, 4, 3).double())
    knobs = dict(factor_lr=0.05, momentum=0.8, damping=0.01, max_factor_dim=limit)
    optimizer = SIRFShampoo([theta], lr=0.1, batch_size=6, weight_decay=0.1, **knobs)
    expected, buffer = theta.detach().clone(), torch.zeros(2, 4, 3).double()
    factors, momenta = [torch.eye(n).double() for n in theta.shape], [torch.zeros(n, n).double() for n in theta.shape]
    for _ in range(6):
        theta.grad = torch.randn(2, 4, 3).double() * 3
        diagonal = [n for n, size in enumerate(theta.shape) if size > limit]
        expected, factors = slow_step(expected, theta.grad, factors, momenta, buffer, diagonal)
        optimizer.step()
        torch.testing.assert_close(theta.detach(), expected, rtol=1e-12, atol=1e-12)
    assert optimizer.state[theta]["factor_1"].shape == ((4,) if limit == 3 else (4, 4))


def test_the_formulas_of_the_diagonal():
    theta = nn.Parameter(torch.randn(3, 4).double())
    optimizer = SIRFShampoo([theta], lr=0.1, batch_size=6, weight_decay=0.1, structure="diagonal", damping=0.01)
    expected, v = theta.detach().clone(), torch.zeros(3, 4).double()
    k, m = torch.ones(3, 4).double(), torch.zeros(3, 4).double()
    for _ in range(6):
        g = theta.grad = torch.randn(3, 4).double() * 3
        m = 0.5 * m + 0.25 * (6 * g**2 * k**2 + 0.01 * k**2 - 1)
        k = k * (1 - 0.01 * m / max(1, float(m.norm())))
        v = 0.9 * v + g * k**2 + 0.1 * expected
        expected = expected - 0.1 * v
        optimizer.step()
        torch.testing.assert_close(theta.detach(), expected, rtol=1e-12, atol=1e-12)


def test_a_tensor_as_a_matrix():
    kernel, matrix = nn.Parameter(torch.randn(3, 2, 2, 2).double()), nn.Parameter(torch.zeros(3, 8).double())
    matrix.data.copy_(kernel.flatten(1))
    optimizers = [
        SIRFShampoo([kernel], batch_size=2, tensors="matrix", factor_lr=0.1),
        SIRFShampoo([matrix], batch_size=2, factor_lr=0.1),
    ]
    for _ in range(4):
        kernel.grad = torch.randn(3, 2, 2, 2).double()
        matrix.grad = kernel.grad.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(kernel.flatten(1), matrix, rtol=1e-13, atol=1e-13)


def test_the_factors_do_not_see_how_a_loss_is_averaged():
    """Half the gradient, of four times the samples, is what they expect of a mean over more of them."""
    thetas = [nn.Parameter(torch.ones(3, 2).double()) for _ in range(2)]
    optimizers = [SIRFShampoo([theta], batch_size=b) for theta, b in zip(thetas, (3, 12), strict=True)]
    for _ in range(3):
        thetas[0].grad = torch.randn(3, 2).double()
        thetas[1].grad = thetas[0].grad / 2
        for optimizer in optimizers:
            optimizer.step()
    for n in (0, 1):
        a, b = (o.state[p][f"factor_{n}"] for o, p in zip(optimizers, thetas, strict=True))
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("structure", ["dense", "diagonal"])
def test_half_precision_is_enough(structure):
    """Weights, factors, momenta and products in bfloat16: what needs no root and no inverse learns all the same."""
    batches = tiny_batches(1) * 150
    knobs = dict(lr=0.02, batch_size=4, structure=structure)
    ends = {}
    for dtype, state_dtype in ((torch.float64, "float32"), (torch.bfloat16, "bfloat16")):
        model = tiny(dtype=dtype)
        optimizer = SIRFShampoo(model, state_dtype=state_dtype, **knobs)
        losses = train(model, optimizer, batches)
        assert losses[0] > 2
        ends[dtype] = losses[-1]
    states = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    assert {value.dtype for value in states} == {torch.bfloat16} and all(value.isfinite().all() for value in states)
    assert ends[torch.float64] < 0.7
    assert abs(ends[torch.bfloat16] - ends[torch.float64]) < 0.02


def test_the_trainer_counts_the_samples(tmp_path, caplog):
    def batch_size(**changes):
        caplog.clear()
        args = arguments(tmp_path, optim="sirfshampoo", **{"optim_args": None, **changes})
        return Trainer(llama(), args, train_dataset=data()).create_optimizer().config.batch_size

    assert batch_size() == 4
    assert batch_size(gradient_accumulation_steps=3, per_device_train_batch_size=2) == 6
    with caplog.at_level(logging.WARNING, "adafisher_hf"):
        assert batch_size(optim_args="batch_size=32") == 32
        assert "batch_size=32 counts, though a step of this Trainer has 4 samples" in caplog.text
        assert batch_size(auto_find_batch_size=True, optim_args="batch_size=9") == 9
        assert not caplog.text
    with pytest.raises(ValueError, match="auto_find_batch_size=True leaves open: give optim_args='batch_size=…'"):
        batch_size(auto_find_batch_size=True)


def test_outside_of_the_trainer_it_has_to_be_told():
    model = tiny()
    optimizer = SIRFShampoo(model)
    next_token_loss(model, tiny_batches(1)[0]).backward()
    with pytest.raises(ValueError, match="SIRFShampoo needs batch_size=…, the number of samples"):
        optimizer.step()
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, or none, got 0"):
        SIRFShampoo(model, batch_size=0)
    assert SIRFShampooConfig.from_optim_args("batch_size=7").batch_size == 7
