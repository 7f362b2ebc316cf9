"""The kronecker structure: exact where the Fisher is a Kronecker product, diagonal where its basis is the identity."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import nn

from adafisher_hf import AdaFisherW, schedule
from adafisher_hf.preconditioners.kronecker import Kronecker, _change_basis
from tests.models import next_token_loss, tiny, tiny_batches


def divide(optimizer, parameter, momentum):
    """What the optimizer makes of a momentum, before grafting."""
    block = optimizer._by_parameter()[id(parameter)]
    direction = optimizer._directions.whole(block, optimizer.state[parameter], optimizer.config.damping)
    return direction.apply(momentum.reshape(block.layouts[0].shape)).reshape(parameter.shape)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_deep_linear_network_gets_its_exact_inverse_fisher(layer):
    """Squared loss, targets the prediction plus ±e_i: h and δ are independent, so the Fisher of a layer is A ⊗ S.

    The oracle makes the Fisher of vec(W) from the gradient of every single example, and inverts it.
    """
    torch.manual_seed(0)
    widths = [4, 5, 3, 6]
    layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)]
    net = nn.Sequential(*layers).double()
    inputs = torch.randn(7, 4, dtype=torch.float64)
    noise = torch.cat([torch.eye(6), -torch.eye(6)]).double() * torch.linspace(0.5, 2, 12, dtype=torch.float64)[:, None]
    x = inputs.repeat_interleave(12, 0)
    target = net(x).detach() + noise.repeat(7, 1)
    weight = layers[layer].weight
    fisher = torch.zeros(weight.numel(), weight.numel(), dtype=torch.float64)
    for example, wanted in zip(x, target, strict=True):
        loss = 0.5 * (net(example) - wanted).square().sum()
        g = torch.autograd.grad(loss, weight)[0].flatten()
        fisher += torch.outer(g, g) / len(x)
    damped = fisher / fisher.diagonal().mean() + 0.1 * torch.eye(weight.numel(), dtype=torch.float64)

    optimizer = AdaFisherW(net.parameters(), model=net, structure="kronecker", damping=0.1, lr=0.0)
    (0.5 * (net(x) - target).square().sum()).backward()
    optimizer.step()
    momentum = torch.randn_like(weight)
    expected = torch.linalg.solve(damped, momentum.flatten()).reshape(weight.shape)
    torch.testing.assert_close(divide(optimizer, weight, momentum), expected, rtol=1e-8, atol=1e-10)


def train(model, optimizer, batches):
    for ids in batches:
        optimizer.zero_grad()
        next_token_loss(model, ids).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    "knobs", [{"token_stride": 1}, {"max_factor_dim": 1, "token_stride": 1}, {"token_stride": 2}], ids=str
)
def test_identity_basis_is_the_diagonal_structure(knobs, monkeypatch):
    monkeypatch.setattr(Kronecker, "renew", lambda self, states: None)
    results = []
    for structure in ("diagonal", "kronecker"):
        model = tiny()
        stride = {"token_stride": knobs["token_stride"]}
        chosen = knobs if structure == "kronecker" else stride
        optimizer = AdaFisherW(model.parameters(), model=model, lr=1e-2, damping=0.1, structure=structure, **chosen)
        results.append(train(model, optimizer, tiny_batches(8)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-12)


def test_factors_are_the_full_second_moments_and_tied_uses_add_up():
    model, other = tiny(), tiny()
    seen = {}

    def keep(name, module, args, output):
        output.retain_grad()
        seen[name] = (args[0].detach(), output)

    for name in ("embed", "head"):
        getattr(other, name).register_forward_hook(partial(keep, name))
    optimizer = AdaFisherW(model.parameters(), model=model, structure="kronecker", lr=0.0, token_stride=1)
    ids = tiny_batches(1)[0]
    train(model, optimizer, [ids])
    next_token_loss(other, ids).backward()
    tokens, embedded = seen["embed"]
    hidden, logits = seen["head"]
    s_embed = embedded.grad.flatten(0, 1)
    h_head, s_head = hidden.flatten(0, 1), logits.grad.flatten(0, 1)
    onehot = nn.functional.one_hot(tokens.flatten(), 11).double()
    # vec(W) row-major over (vocabulary, width): F = (rows ⊗ cols) of each use, summed
    fisher = torch.kron(onehot.T @ onehot, s_embed.T @ s_embed) + torch.kron(s_head.T @ s_head, h_head.T @ h_head)
    fisher /= fisher.diagonal().mean()
    block = optimizer._by_parameter()[id(model.embed.weight)]
    state = optimizer.state[model.embed.weight]
    ours = sum(
        torch.kron(state[f"row_factor_{k}"][0], state[f"col_factor_{k}"][0]) / state[f"factor_weight_{k}"] ** 2
        for k in range(2)
    )
    assert block.kind == "embedding+linear"
    torch.testing.assert_close(ours / ours.diagonal().mean(), fisher, rtol=1e-9, atol=1e-12)


def test_long_sides_stay_diagonal():
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model, structure="kronecker", max_factor_dim=8)
    train(model, optimizer, tiny_batches(1))
    state = optimizer.state[model.embed.weight]  # (11, 6)
    assert state["row_factor_0"].shape == (1, 11) and state["col_factor_0"].shape == (1, 6, 6)
    assert "col_basis" in state and "row_basis" not in state


def test_bases_are_staggered_after_the_first_refreshes(monkeypatch):
    updated = []
    monkeypatch.setattr(schedule, "DENSE_BASES", 2)
    original = Kronecker.renew
    monkeypatch.setattr(Kronecker, "renew", lambda self, states: (updated.append(len(states)), original(self, states)))
    model = tiny()
    knobs = dict(structure="kronecker", basis_interval=3, update_warmup=0, update_interval=1)
    train(model, AdaFisherW(model.parameters(), model=model, **knobs), tiny_batches(8))
    blocks = len(list(model.parameters()))
    assert updated[:2] == [blocks, blocks]
    assert sum(updated[2:5]) == sum(updated[5:8]) == blocks and max(updated[2:]) <= blocks // 3 + 1


def test_a_failed_decomposition_keeps_the_old_basis(monkeypatch):
    model = tiny()
    knobs = dict(structure="kronecker", basis_interval=1, update_warmup=100)
    optimizer = AdaFisherW(model.parameters(), model=model, **knobs)
    train(model, optimizer, tiny_batches(2))
    old = optimizer.state[model.up.weight]["row_basis"].clone()

    def fail(matrix):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    train(model, optimizer, tiny_batches(3)[2:])
    assert torch.equal(optimizer.state[model.up.weight]["row_basis"], old)
    assert optimizer._preconditioner.failures > 0
    assert optimizer.summary()["kronecker"]["failed_bases"] == optimizer._preconditioner.failures


def test_second_moment_is_carried_over_a_basis_change():
    """A diagonal covariance of vec(G) seen from another basis: only its diagonal there is kept, exactly."""
    torch.manual_seed(0)

    def orthogonal(n):
        return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0][None]

    old, new = (
        {s: orthogonal(n) for s, n in (("row", 3), ("col", 4))},
        {s: orthogonal(n) for s, n in (("row", 3), ("col", 4))},
    )
    variances = torch.rand(1, 3, 4, dtype=torch.float64)
    turn = torch.kron(old["row"][0].T @ new["row"][0], old["col"][0].T @ new["col"][0])
    expected = (turn.T @ torch.diag(variances.flatten()) @ turn).diagonal().reshape(1, 3, 4)
    state = {"row_basis": old["row"].clone(), "col_basis": old["col"].clone(), "rotated_sq": variances.clone()}
    _change_basis(state, new)
    torch.testing.assert_close(state["rotated_sq"], expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(state["row_basis"], new["row"])


def test_shared_inputs_are_measured_once(monkeypatch):
    """Query, key and value read the same tensor: one Gram matrix, and the same statistics."""
    from adafisher_hf.statistics.tap import Tap
    from tests.models import llama

    calls = []
    original = Tap.moment
    monkeypatch.setattr(Tap, "moment", staticmethod(lambda *a: (calls.append(a), original(*a))[1]))
    model = llama(tie_word_embeddings=False)
    optimizer = AdaFisherW(model.parameters(), model=model, structure="kronecker")
    ids = torch.randint(0, 64, (2, 9))
    model(input_ids=ids, labels=ids).loss.backward()
    dense = [call for call in calls if call[-1] and not hasattr(call[0], "ids")]
    layers = model.config.num_hidden_layers
    # a layer: inputs of qkv, o, gate/up, down; outputs of all seven; the head's two; the embedding's output
    assert len(dense) == layers * (4 + 7) + 3
    attention = model.model.layers[0].self_attn
    optimizer.step()
    q, k = optimizer.state[attention.q_proj.weight], optimizer.state[attention.k_proj.weight]
    assert torch.equal(q["col_factor_0"], k["col_factor_0"])


def test_rotated_second_moment_follows_the_squared_rotated_gradient(monkeypatch):
    monkeypatch.setattr(schedule, "DENSE_BASES", 1)
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double()
    knobs = dict(structure="kronecker", second_moment="rotated", beta2=0.9, basis_interval=100, damping=0.1)
    optimizer = AdaFisherW(model.parameters(), model=model, lr=0.0, **knobs)
    expected = torch.zeros(1, 3, 4, dtype=torch.float64)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 4, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        state = optimizer.state[model.weight]
        g = state["row_basis"].mT @ model.weight.grad @ state["col_basis"]
        expected = 0.9 * expected + 0.1 * g.square() / g.square().mean()
        torch.testing.assert_close(state["rotated_sq"], expected, rtol=1e-9, atol=1e-12)
    relative = expected / expected.mean()
    torch.testing.assert_close(optimizer.curvature(model.weight), relative.sqrt()[0] + 0.1, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("longest", "share"), [(8, None), (7, "100%"), (5, "100%")])
def test_says_when_it_is_not_one(longest, share, caplog):
    model = tiny()
    train(model, AdaFisherW(model, structure="kronecker", max_factor_dim=longest), tiny_batches(2))
    told = [record.message for record in caplog.records if "max_factor_dim" in record.message]
    assert len(told) == (share is not None)
    if share:
        assert f"{share} of the numbers in hidden matrices: sides are up to 8 long" in told[0]
        assert "structure='orthogonal'" in told[0]
