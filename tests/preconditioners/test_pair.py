"""LoRA pairs: one step of the product, whatever stands between its factors."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from adafisher_hf import AdaFisherConfig, AdaFisherW, coverage
from adafisher_hf.preconditioners.pair import LENGTH, damped_inverses, pair_step, product_length
from tests.models import llama

M, N, R = 7, 9, 3


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem():
    """A, B, P, Q and a gradient of the product."""
    return (
        random(1, R, N),
        random(1, M, R, seed=1),
        random(1, M, 1).exp(),
        random(1, 1, N, seed=2).exp(),
        random(1, M, N),
    )


def product_step(a, b, p, q, g, damping=0.0):
    step_a, step_b = pair_step(a, b, b.mT @ g, g @ a.mT, p, q, damping)
    return b @ step_a + step_b @ a


def test_without_damping_it_is_the_projection_of_the_divided_gradient():
    """Onto B X + Y A, in the metric P ⊗ Q: the closest to P⁻¹ G Q⁻¹ that an adapter can reach, by least squares."""
    a, b, p, q, g = problem()
    target = (g / p / q)[0]
    reach_x = torch.einsum("mr,nk->mnrk", b[0], torch.eye(N, dtype=torch.float64)).reshape(M * N, -1)
    reach_y = torch.einsum("mk,rn->mnkr", torch.eye(M, dtype=torch.float64), a[0]).reshape(M * N, -1)
    reach = torch.cat([reach_x, reach_y], 1)
    metric = (p * q)[0].reshape(-1, 1).sqrt()
    found = torch.linalg.lstsq(metric * reach, metric * target.reshape(-1, 1), driver="gelsd").solution
    torch.testing.assert_close(product_step(a, b, p, q, g)[0], (reach @ found).reshape(M, N))


def test_what_stands_between_the_factors_changes_nothing():
    a, b, p, q, g = problem()
    expected = product_step(a, b, p, q, g)
    for seed in range(3):
        n = random(1, R, R, seed=10 + seed)
        torch.testing.assert_close(product_step(n @ a, b @ torch.linalg.inv(n), p, q, g), expected)


def test_full_rank_is_the_step_without_factors():
    a, b = random(1, 5, 5), random(1, 5, 5, seed=1)
    p, q, g = random(1, 5, 1).exp(), random(1, 1, 5, seed=2).exp(), random(1, 5, 5, seed=3)
    torch.testing.assert_close(product_step(a, b, p, q, g), g / p / q)


def test_the_length_is_that_of_the_product():
    a, b, _, _, g = problem()
    step_a, step_b = b.mT @ g, g @ a.mT
    torch.testing.assert_close(product_length(a, b, step_a, step_b), (b @ step_a + step_b @ a).norm())


@pytest.mark.parametrize("zero", ["a", "b"])
def test_a_factor_that_is_still_zero_is_damped_by_the_other_one(zero):
    a, b, p, q, g = problem()
    a, b = (torch.zeros_like(a), b) if zero == "a" else (a, torch.zeros_like(b))
    inverses = damped_inverses((a * q) @ a.mT, b.mT @ (p * b), p.sum((1, 2)) / q.sum((1, 2)), 0.2)
    assert all(inverse.isfinite().all() for inverse in inverses)
    step_a, step_b = pair_step(a, b, b.mT @ g, g @ a.mT, p, q, 0.2)
    assert (step_b if zero == "a" else step_a).eq(0).all()  # nothing moves without a gradient
    assert (step_a if zero == "a" else step_b).norm() > 0


class Two(nn.Module):
    """Two layers that peft can adapt."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(N, M), nn.Linear(M, 4)

    def forward(self, x):
        return self.two(self.one(x).tanh())


def adapted(seed=0, scale=None, **options):
    torch.manual_seed(seed)
    model = get_peft_model(Two(), LoraConfig(r=R, target_modules=["one", "two"], **options)).double()
    torch.manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    for layer in (model.base_model.model.one, model.base_model.model.two):
        if scale is not None:
            with torch.no_grad():
                layer.lora_A["default"].weight.copy_(scale @ layer.lora_A["default"].weight)
                layer.lora_B["default"].weight.copy_(layer.lora_B["default"].weight @ torch.linalg.inv(scale))
    return model


def products(model):
    layers = (model.base_model.model.one, model.base_model.model.two)
    return [layer.get_delta_weight("default") for layer in layers]


def train(model, steps=6, cls=AdaFisherW, loss_scale=1.0, parts=1, **knobs):
    options = dict(lr=1e-2, lora="pair", update_warmup=3, update_interval=2, beta=0.0)
    optimizer = cls(model, **{**options, **knobs})
    for step in range(steps):
        x, y = random(12, N, seed=step), torch.arange(12) % 4
        optimizer.zero_grad()
        for some, wanted in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (nn.functional.cross_entropy(model(some), wanted) * loss_scale / parts).backward()
        optimizer.step()
    return optimizer


def test_the_trajectory_of_the_product_is_the_same_for_every_split():
    """Without momentum, whose coordinates turn with the split, and up to damping, which is made tiny."""
    n = random(R, R, seed=5)
    plain, split = adapted(), adapted(scale=n)
    for one, other in zip(products(plain), products(split), strict=True):
        torch.testing.assert_close(one, other)
    for model in (plain, split):
        train(model, pair_damping=1e-12)
    for one, other in zip(products(plain), products(split), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    apart, together = adapted(), adapted(scale=n)
    for model in (apart, together):
        train(model, lora="factors")
    assert not torch.allclose(products(apart)[0], products(together)[0], rtol=1e-2)


def test_the_product_moves_by_a_constant_length():
    model = adapted()
    before = [product.clone() for product in products(model)]
    scaling = model.base_model.model.one.scaling["default"]
    train(model, steps=1, lr=1e-6)
    for old, new in zip(before, products(model), strict=True):
        expected = 1e-6 * LENGTH * old.numel() ** 0.5 * scaling
        assert (new - old).norm().item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("change", [{"loss_scale": 1e-6}, {"loss_scale": 1e6}, {"parts": 3}, {"kernel": "plain"}])
def test_what_changes_no_trajectory(change):
    reference, model = adapted(), adapted()
    train(reference, beta=0.9)
    train(model, beta=0.9, **change)
    for one, other in zip(reference.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "orthogonal"])
def test_coverage_names_the_pairs_and_the_factors_have_diagonals(structure):
    model = adapted()
    config = AdaFisherConfig(structure=structure, lora="pair")
    rows = {row.name: row.treatment for row in coverage(model, config)}
    a = "base_model.model.one.lora_A.default.weight"
    b = "base_model.model.one.lora_B.default.weight"
    assert (rows[a], rows[b]) == (f"one step with {b}", f"one step with {a}")
    optimizer = train(model, structure=structure)
    assert not any("basis" in key for state in optimizer.state.values() for key in state)
    assert all("one step with" not in row.treatment for row in coverage(model))


def test_a_zero_start_moves():
    torch.manual_seed(0)
    model = get_peft_model(Two(), LoraConfig(r=R, target_modules=["one", "two"])).double()
    optimizer = train(model, steps=8, beta=0.9)
    assert all(product.norm() > 0 for product in products(model))
    assert all(value.isfinite().all() for state in optimizer.state.values() for value in state.values())


def test_a_frozen_factor_and_several_adapters():
    model = adapted()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["one"]))
    model.set_adapter("default")
    layer = model.base_model.model.one
    layer.lora_A["default"].weight.requires_grad_(False)
    rows = {row.name: row.treatment for row in coverage(model, AdaFisherConfig(lora="pair"))}
    assert rows["base_model.model.one.lora_B.default.weight"] == "diagonal"  # its partner does not move
    assert rows["base_model.model.two.lora_B.default.weight"].startswith("one step with")
    train(model)


def test_what_is_no_pair():
    """Embeddings, whose A and B no module multiplies with, and A that layers share."""
    torch.manual_seed(0)
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "k_proj", "embed_tokens"]))
    q, k = (model.base_model.model.model.layers[0].self_attn.get_submodule(name) for name in ("q_proj", "k_proj"))
    k.lora_A["default"].weight = q.lora_A["default"].weight
    rows = {row.name: row.treatment for row in coverage(model, AdaFisherConfig(lora="pair"))}
    apart = {name for name, treatment in rows.items() if not treatment.startswith("one step")}
    assert any("embedding" in name for name in apart)
    assert any("layers.0.self_attn.k_proj.lora_B" in name for name in apart)
    assert not any("layers.1" in name for name in apart)


@pytest.mark.parametrize(
    "options",
    [{"use_rslora": True}, {"use_dora": True}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}],
)
def test_other_kinds_of_lora_train(options):
    torch.manual_seed(0)
    base = Two()
    model = get_peft_model(base, LoraConfig(r=R, target_modules=["one"], **options)).double()
    losses = []
    optimizer = AdaFisherW(model, lr=3e-2, lora="pair")
    x, y = random(32, N), torch.arange(32) % 4
    for _ in range(40):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02
    pairs = [row for row in optimizer.coverage_rows() if row.treatment.startswith("one step")]
    assert len(pairs) == 2


def test_convolutions_are_pairs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6 * 4, 2))
    model = get_peft_model(net, LoraConfig(r=2, target_modules=["0"]))
    optimizer = AdaFisherW(model, lr=1e-2, lora="pair")
    for step in range(3):
        optimizer.zero_grad()
        model(random(5, 3, 4, 4, seed=step).float()).square().mean().backward()
        optimizer.step()
    assert sum(row.treatment.startswith("one step") for row in optimizer.coverage_rows()) == 2


def test_resume_is_bitwise():
    whole, first = adapted(), adapted()
    train(whole, steps=6, beta=0.9)
    optimizer = train(first, steps=3, beta=0.9)
    second = adapted()
    second.load_state_dict(first.state_dict())
    resumed = AdaFisherW(second, lr=1e-2, lora="pair", update_warmup=3, update_interval=2, beta=0.9)
    resumed.load_state_dict(optimizer.state_dict())
    for step in range(3, 6):
        x, y = random(12, N, seed=step), torch.arange(12) % 4
        resumed.zero_grad()
        nn.functional.cross_entropy(second(x), y).backward()
        resumed.step()
    for one, other in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_two_learning_rates_for_one_step_are_refused():
    model = adapted()
    groups = [
        {"params": [p for name, p in model.named_parameters() if key in name and p.requires_grad], "lr": lr}
        for key, lr in (("lora_A", 1e-3), ("lora_B", 1e-2))
    ]
    with pytest.raises(ValueError, match=r"lora_B.* are in different parameter groups: put both into one \(LoRA\+"):
        AdaFisherW(groups, model=model, lora="pair")
    AdaFisherW(groups, model=model, lora="factors")


def test_without_gradients_it_comes_to_rest():
    model = adapted()
    optimizer = train(model, steps=10, beta=0.9)
    moved = []
    for _ in range(60):
        before = [product.clone() for product in products(model)]
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        moved.append(sum((new - old).norm() for old, new in zip(before, products(model), strict=True)).item())
    assert moved[-1] < 0.05 * moved[0]
