"""Gradients of any size, down to nothing: weights and state stay finite, and the scale of the loss is not seen."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from adafisher_hf import AdaFisher, AdaFisherW
from adafisher_hf.layers import Layout
from adafisher_hf.preconditioners.diagonal import Diagonal
from adafisher_hf.preconditioners.quotient import Quotient
from adafisher_hf.statistics.block import Use
from adafisher_hf.statistics.sums import Sums
from tests.models import next_token_loss, tiny, tiny_batches
from tests.test_invariance import STRUCTURES, every_structure

MODES = {"paper": {"mode": "paper", "lr": 1e-4}, "reference": {"mode": "reference", "lr": 1e-4}}
every_setting = pytest.mark.parametrize("setting", [*STRUCTURES, *MODES])
KERNELS = pytest.mark.parametrize("kernel", ["plain", "foreach"])
SCALES = [1e-40, 1e-36, 1e-30, 1e-25, 1e-22, 1e-21, 1e-20, 1e-18, 1e-12, 1e12, 1e18, 1e20, 1e30]


def knobs_of(setting):
    return dict(lr=1e-2, weight_decay=0.1, update_warmup=4, update_interval=2) | (STRUCTURES | MODES)[setting]


def assert_finite(model, optimizer):
    for name, p in model.named_parameters():
        assert torch.isfinite(p).all(), name
        for key, value in optimizer.state[p].items():
            assert torch.isfinite(value).all(), f"{key} of {name}"
        curvature = optimizer.curvature(p)
        assert torch.isfinite(curvature).all() and (curvature > 0).all(), name


@KERNELS
@every_setting
@pytest.mark.parametrize("scale", SCALES)
def test_a_loss_of_any_scale_leaves_everything_finite(scale, setting, kernel):
    """From one batch to the next the loss shrinks or grows by up to 10^70."""
    model = tiny(dtype=torch.float32)
    optimizer = AdaFisherW(model, kernel=kernel, **knobs_of(setting))
    for i, ids in enumerate(tiny_batches(8)):
        optimizer.zero_grad()
        (next_token_loss(model, ids).float() * (scale if i % 3 == 1 else 1.0)).backward()
        optimizer.step()
        assert_finite(model, optimizer)
    moved = tiny(dtype=torch.float32)
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), moved.parameters(), strict=True))


@every_structure
@pytest.mark.parametrize("cls", [AdaFisher, AdaFisherW])
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-20, 1e20, 1e30])
def test_the_scale_of_the_loss_is_not_seen_however_extreme(cls, scale, structure):
    """In float64, which has the range: σ² of a loss at 1e-40 is 1e-80."""

    def train(scale):
        model = tiny()
        optimizer = cls(model, **knobs_of(structure))
        for ids in tiny_batches(8):
            optimizer.zero_grad()
            (next_token_loss(model, ids) * scale).backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.testing.assert_close(train(scale), train(1.0), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize(
    "exponents", [(-45, 0), (-45, -45), (-30, -15), (-22, -22), (-44, 38), (30, 30), (38, 38), (0, -45)]
)
def test_a_refresh_with_any_sums_is_finite_and_has_mean_one(exponents, independent, dtype):
    """H and S near both ends of their dtype; F itself is far outside of it."""
    torch.manual_seed(0)
    layout = Layout((2, 3, 5), independent=independent)
    h, s = (10.0**e * (0.5 + torch.rand(2, n, dtype=torch.float64)) for e, n in zip(exponents, (5, 3), strict=True))
    sums = Sums(h.to(dtype), s.to(dtype), torch.tensor(50.0, dtype=dtype))
    state: dict = {}
    Diagonal().init(state, [layout], torch.empty(0, dtype=dtype))
    Diagonal().refresh(state, [Use(sums, layout)], 0.5)
    assert all(torch.isfinite(value).all() for value in state.values())
    dense = Diagonal().direction(state, [layout], 0.1).dense()
    assert torch.isfinite(dense).all() and (dense > 0).all()
    if max(sums.input.max(), sums.output.max()) < torch.finfo(dtype).tiny:
        assert not state["factor_weight_0"].any(), "subnormal sums have too few digits to be averaged"
    if min(sums.input.min(), sums.output.min()) > torch.finfo(dtype).tiny and torch.isfinite(sums.input.sum()):
        exact = s.unsqueeze(-1) * h.unsqueeze(-2)
        mean = exact.mean((1, 2) if independent else (0, 1, 2), keepdim=True)
        torch.testing.assert_close(dense.double(), exact / mean + 0.1, rtol=1e-5, atol=0.0)


def test_uses_of_a_tied_weight_have_their_shares_at_any_scale():
    """Two owners whose curvatures are as 1 to 3, both far below what float32 can multiply."""
    layout, like = Layout((1, 2, 2)), torch.empty(0)
    state: dict = {}
    Diagonal().init(state, [layout, layout], like)
    ones = torch.ones(1, 2)
    uses = [Use(Sums(ones * 1e-25, ones * w * 1e-25, torch.tensor(8.0)), layout) for w in (1.0, 3.0)]
    Diagonal().refresh(state, uses, 0.0)
    torch.testing.assert_close(state["row_factor_0"] / state["row_factor_1"], ones / 3, rtol=1e-4, atol=0.0)


def test_an_owner_without_a_gradient_leaves_the_others_columns_alone():
    """The head of a tied weight had inputs but no δ: F_k = 0 enters, and 0 · inf does not."""
    layout = Layout((1, 2, 3))
    state: dict = {}
    Diagonal().init(state, [layout, layout], torch.empty(0))
    h, s, n = torch.tensor([[1.0, 2, 3]]), torch.tensor([[1.0, 3]]), torch.tensor(4.0)
    Diagonal().refresh(state, [Use(Sums(h, s, n), layout), Use(Sums(h, s * 0, n), layout)], 0.5)
    dense = Diagonal().direction(state, [layout, layout], 0.1).dense()
    exact = s.unsqueeze(-1) * h.unsqueeze(-2)
    torch.testing.assert_close(dense, exact / exact.mean() + 0.1)


@KERNELS
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_direction_that_is_not_finite_is_stepped_along_the_momentum(kernel, bad, monkeypatch):
    """Whatever a structure makes of its state: F̂ = 1 takes the place of a quotient that is not finite."""
    broken = nn.Linear(3, 2, bias=False).double()
    plain = nn.Linear(3, 2, bias=False).double()
    plain.load_state_dict(broken.state_dict())
    x = torch.randn(5, 3, dtype=torch.float64)

    def direction(self, state, layouts, damping, of=bad):
        stack, rows, cols = layouts[0].shape
        like = state["step"]
        return Quotient(like.new_zeros(1, stack, rows), like.new_zeros(1, stack, cols), like.new_full((1, 1, 1), of))

    for model, divisor in ((broken, bad), (plain, 1.0)):
        monkeypatch.setattr(Diagonal, "direction", lambda *a, of=divisor: direction(*a, of=of))
        optimizer = AdaFisherW(model, lr=0.1, kernel=kernel)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    if bad == float("inf"):  # m / inf = 0 is finite: nothing moves
        assert torch.isfinite(broken.weight).all()
    else:
        torch.testing.assert_close(broken.weight, plain.weight, rtol=1e-12, atol=0.0)


@pytest.mark.slow
@every_setting
def test_memorising_for_3000_steps(setting):
    """32 examples by heart: in the end the gradients vanish, and what is left of them must not blow up."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    x, y = torch.randn(32, 8), torch.randint(0, 4, (32,))
    knobs = dict(update_warmup=100, update_interval=10) | (STRUCTURES | MODES)[setting]
    optimizer = AdaFisherW(model, **{"lr": 1e-2, **knobs})
    for step in range(3000):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            assert_finite(model, optimizer)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(x), y).item()
    assert loss < (1e-2 if setting in STRUCTURES else 1.4)


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "orthogonal"])
def test_bert_memorises_16_examples(structure):
    """What an independent review saw: NaN weights after 1020 and 1220 steps, with AdamW unharmed."""
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    config = BertConfig(vocab_size=200, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    ids, labels = torch.randint(5, 200, (16, 12)), torch.randint(0, 2, (16,))
    optimizer = AdaFisherW(model, lr=1e-3, structure=structure)
    for step in range(1800):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            assert_finite(model, optimizer)
    assert loss.item() < 1e-4
