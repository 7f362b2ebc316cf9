"""Loss scaling, autocast and half-precision models: the statistics do not notice, overflows change nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from adafisher_hf import AdaFisher, AdaFisherW
from tests.models import llama, next_token_loss, tiny, tiny_batches
from tests.test_invariance import STRUCTURES, every_structure

KNOBS = dict(lr=1e-2, weight_decay=0.1, update_warmup=3, update_interval=2)


def scaled_run(batches, overflow_at=(), where="loss", wrap=lambda optimizer, scaler: None, **knobs):
    """Trains with a real GradScaler; some steps overflow, in the loss or in the gradient of one parameter alone."""
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model, **{**KNOBS, **knobs})
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for i, ids in enumerate(batches):
        model.zero_grad()
        loss = next_token_loss(model, ids)
        scaler.scale(loss * torch.inf if i in overflow_at and where == "loss" else loss).backward()
        if i in overflow_at and where == "one parameter":
            model.gate.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
    return model, optimizer


def assert_same_run(a, b):
    (model_a, optimizer_a), (model_b, optimizer_b) = a, b
    for (name, p), q in zip(model_a.named_parameters(), model_b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
        for key, value in optimizer_a.state[p].items():
            # The sizes of σ and momentum are those of unscaled gradients in both runs.
            torch.testing.assert_close(value, optimizer_b.state[q][key], rtol=1e-7, atol=1e-12)
    assert [g["step"] for g in optimizer_a.param_groups] == [g["step"] for g in optimizer_b.param_groups]


@every_structure
@pytest.mark.parametrize("where", ["loss", "one parameter"])
def test_an_overflow_leaves_no_trace(structure, where):
    batches = tiny_batches(10)
    overflowing = scaled_run(batches, overflow_at=(0, 4, 5), where=where, **STRUCTURES[structure])
    kept = [ids for i, ids in enumerate(batches) if i not in (0, 4, 5)]
    assert_same_run(overflowing, scaled_run(kept, **STRUCTURES[structure]))


@pytest.mark.parametrize("mode", ["calibrated", "paper"])
def test_the_loss_scale_changes_nothing(mode):
    batches, knobs = tiny_batches(10), {"mode": mode, "lr": 1e-2 if mode == "calibrated" else 1e-4}
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model, **{**KNOBS, **knobs})
    for ids in batches:
        model.zero_grad()
        next_token_loss(model, ids).backward()
        optimizer.step()
    scaled, _ = scaled_run(batches, **knobs)
    for p, q in zip(model.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-10)


def test_accelerate_sees_that_a_step_was_skipped():
    """The Trainer then leaves the schedule of the learning rate alone."""
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model, **KNOBS)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    Accelerator(cpu=True)
    accelerated = AcceleratedOptimizer(optimizer, device_placement=False, scaler=scaler)
    skipped = []
    for factor in (1.0, torch.inf, 1.0):
        model.zero_grad()
        scaler.scale(next_token_loss(model, tiny_batches(1)[0]) * factor).backward()
        accelerated.step()
        skipped.append(accelerated.step_was_skipped)
    assert skipped == [False, True, False]
    assert optimizer.param_groups[0]["step"] == 2


def test_gradients_thrown_away_are_forgotten_and_accumulated_ones_are_not():
    first, second = tiny_batches(2)
    curvatures = []
    for thrown_away, micro_batches in ((None, [second]), (first, [second]), (None, [second[:2], second[2:]])):
        model = tiny()
        optimizer = AdaFisherW(model.parameters(), model=model, **KNOBS)
        if thrown_away is not None:
            next_token_loss(model, thrown_away).backward()
            model.zero_grad()
        with torch.no_grad():
            model(first)
        for ids in micro_batches:
            (next_token_loss(model, ids) / len(micro_batches)).backward()
            with torch.no_grad():
                model(first)
        optimizer.step()
        curvatures.append([optimizer.curvature(p) for p in model.parameters()])
    for other in curvatures[1:]:
        for a, b in zip(curvatures[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def curvatures(model, autocast=False, **knobs):
    optimizer = AdaFisherW(model.parameters(), model=model, **KNOBS, **knobs)
    ids = torch.arange(64).view(4, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    assert all(v.dtype == torch.float32 for s in optimizer.state.values() for k, v in s.items() if k != "compensation")
    assert all(torch.isfinite(p).all() for p in model.parameters())
    return {name: optimizer.curvature(p) for name, p in model.named_parameters()}


def watched(model):
    """What every linear layer reads and gets back, as it is, by its name."""
    seen = {}

    def keep(name, args, output):
        seen[name] = [args[0].detach()]
        output.register_hook(seen[name].append)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, args, output, name=name: keep(name, args, output))
    return seen


@pytest.mark.parametrize("how", ["autocast", "bfloat16 model"])
@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_half_precision_statistics_are_sums_of_what_the_layers_see(how, structure):
    """Whatever the network has rounded: from there on nothing is lost but bfloat16 products of dense factors."""
    model = llama() if how == "autocast" else llama().to(torch.bfloat16)
    seen = watched(model)
    optimizer = AdaFisherW(model, structure=structure, **KNOBS, token_stride=1)
    ids = torch.arange(64).view(4, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    taps = optimizer._statistics._taps
    names = {id(module): name for name, module in model.named_modules()}
    compared = [(tap.sums, *seen[names[key]]) for key, tap in taps.items() if names[key] in seen]
    assert len(compared) == len(seen)
    for sums, h, delta in compared:
        for ours, x in ((sums.input[0], h), (sums.output[0], delta)):
            rows = x.flatten(0, -2).double()
            exact = rows.T @ rows if ours.dim() == 2 else rows.square().sum(0)
            scale = exact if ours.dim() == 1 else exact.diagonal().outer(exact.diagonal()).sqrt()
            assert ((ours - exact).abs() / scale).max() < (1e-5 if ours.dim() == 1 else 0.05)


@pytest.mark.parametrize("how", ["autocast", "bfloat16 model"])
@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_half_precision_curvature_is_that_of_full_precision(how, structure):
    """As many digits as bfloat16 leaves to the network: the median entry agrees to 2 %."""
    model = llama()
    knobs = {"structure": structure}
    if structure == "kronecker":
        knobs["max_factor_dim"] = 1  # without a basis the entries can be compared
    full = curvatures(copy.deepcopy(model), **knobs)
    if how == "autocast":
        half = curvatures(model, autocast=True, **knobs)
    else:
        half = curvatures(model.to(torch.bfloat16), **knobs)
    for name, value in full.items():
        relative = (half[name] / value - 1).abs()
        assert relative.median() < 0.02, name
        assert relative.quantile(0.95) < 0.05, f"{name} {relative.quantile(0.95)}"


@pytest.mark.parametrize("how", ["autocast", "bfloat16 model"])
def test_half_precision_dense_factors_are_those_of_full_precision(how):
    """Products of the statistics are as coarse as the network's own, their sums are not."""
    model = llama()
    factors = []
    for half in (False, True):
        copied = copy.deepcopy(model).to(torch.bfloat16 if half and how != "autocast" else torch.float32)
        optimizer = AdaFisherW(copied.parameters(), model=copied, structure="kronecker", token_stride=1, **KNOBS)
        ids = torch.arange(64).view(4, 16)
        with torch.autocast("cpu", torch.bfloat16, enabled=half and how == "autocast"):
            loss = copied(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        weight = copied.model.layers[0].mlp.down_proj.weight
        factors.append([optimizer.state[weight][f"{side}_factor_0"] for side in ("row", "col")])
    for full, coarse in zip(*factors, strict=True):
        assert coarse.dtype == torch.float32
        assert 1e-4 * full.norm() < (coarse - full).norm() < 0.03 * full.norm()


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_squares_of_half_precision_do_not_overflow(structure):
    """h and δ of float16 whose squares float16 cannot hold."""
    layer = nn.Linear(4, 4).half()
    optimizer = AdaFisherW(layer.parameters(), model=layer, lr=1e-3, structure=structure, token_stride=1)
    out = layer(torch.full((3, 4), 600.0, dtype=torch.half))
    out.backward(torch.full_like(out, 1000.0))
    optimizer.step()
    assert torch.isfinite(optimizer.curvature(layer.weight)).all()
    assert optimizer.state[layer.weight]["factor_weight_0"].item() > 0


@pytest.mark.parametrize("kernel", ["plain", "foreach"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kahan_keeps_what_rounding_would_lose(kernel, dtype):
    """A constant gradient moves the weight by α a step: from 1 to 0.9, in steps far below half precision's spacing."""
    ends = {}
    for rounding in ("kahan", "nearest"):
        layer = nn.Linear(1, 1, bias=False).to(dtype)
        nn.init.ones_(layer.weight)
        optimizer = AdaFisherW(layer.parameters(), model=layer, lr=1e-4, rounding=rounding, kernel=kernel)
        for _ in range(1000):
            layer.weight.grad = torch.ones_like(layer.weight)
            optimizer.step()
        ends[rounding] = layer.weight.item()
        assert ("compensation" in optimizer.state[layer.weight]) == (rounding == "kahan")
    assert ends["nearest"] == 1.0
    assert ends["kahan"] == pytest.approx(0.9, abs=4e-3)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_a_half_precision_model_follows_the_full_one(structure):
    """Kahan's compensation brings a bfloat16 model closer to the float32 trajectory than rounding to nearest."""
    ends = {}
    for dtype, rounding in ((torch.float32, "kahan"), (torch.bfloat16, "kahan"), (torch.bfloat16, "nearest")):
        model = llama().to(torch.bfloat16).to(dtype)
        optimizer = AdaFisherW(model, lr=3e-4, structure=structure, rounding=rounding)
        for i in range(60):
            ids = (torch.arange(64).view(4, 16) * (i % 5 + 1)) % 64
            model.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        weights = [
            p.detach().float() + optimizer.state[p].get("compensation", torch.zeros(())).float()
            for p in model.parameters()
        ]
        ends[dtype, rounding] = torch.cat([w.flatten() for w in weights])
    full = ends[torch.float32, "kahan"]
    kahan, nearest = ((ends[torch.bfloat16, r] - full).norm().item() for r in ("kahan", "nearest"))
    assert kahan < 0.7 * nearest


@pytest.mark.parametrize("mode", ["calibrated", "paper"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backward_inside", [False, True])
def test_sums_under_autocast_are_wide(mode, dtype, backward_inside):
    """More tokens than half precision can count, and a sum of squares that float16 cannot hold."""
    torch.manual_seed(0)
    layer, x = nn.Linear(3, 2, bias=False), torch.randn(70_000, 3) * torch.tensor([1.0, 2.0, 3.0])
    optimizer = AdaFisherW(layer.parameters(), model=layer, mode=mode, lr=1e-3, update_warmup=5)
    with torch.autocast("cpu", dtype):
        loss = layer(x).float().square().mean()
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    (tap,) = optimizer._statistics._taps.values()
    assert tap.sums.input.dtype == tap.sums.output.dtype == tap.sums.tokens.dtype == torch.float32
    torch.testing.assert_close(tap.sums.input[0], x.square().sum(0), rtol=1e-4, atol=0.0)
    assert tap.sums.tokens.item() == 70_000
    optimizer.step()
    assert optimizer.curvature(layer.weight).std() > 0.01


def test_many_micro_batches_under_autocast_add_up():
    layer = nn.Linear(2, 2, bias=False)
    optimizer = AdaFisherW(layer.parameters(), model=layer)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(600):
            layer(torch.ones(1, 2)).sum().backward()
    (tap,) = optimizer._statistics._taps.values()
    assert tap.sums.input.tolist() == [[600.0, 600.0]]


@pytest.mark.parametrize("kernel", ["plain", "foreach"])
def test_kahan_and_a_gradient_that_is_not_finite(kernel):
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False).bfloat16()
    optimizer = AdaFisherW(layer.parameters(), model=layer, lr=1e-2, kernel=kernel)
    for bad in (False, False, True):
        before = layer.weight.detach().clone()
        layer.weight.grad = torch.randn_like(layer.weight)
        layer.weight.grad[0, 0] = torch.nan if bad else 0.1
        optimizer.step()
        assert torch.equal(layer.weight, before) == bad


class Scaler:
    """What attach_scaler reads of a GradScaler, on the CPU too."""

    def __init__(self, scale):
        self._scale = torch.tensor(scale)


@pytest.mark.parametrize("mode", ["paper", "reference"])
def test_statistics_that_have_a_unit_are_free_of_the_loss_scale(mode):
    """S is the square of a gradient: it shrinks with the square of the scale."""

    def measured(scale, attach):
        torch.manual_seed(0)
        layer = nn.Linear(4, 3)
        optimizer = AdaFisherW(layer, mode=mode, lr=1e-5)
        if attach:
            optimizer.attach_scaler(Scaler(scale))
        (layer(torch.randn(8, 4)).square().mean() * scale).backward()
        (tap,) = optimizer._statistics.taps
        return tap.sums

    plain, scaled, unaware = measured(1.0, False), measured(1024.0, True), measured(1024.0, False)
    torch.testing.assert_close(scaled.output, plain.output, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(scaled.input, plain.input, rtol=0.0, atol=0.0)
    torch.testing.assert_close(unaware.output, plain.output * 1024.0**2, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", ["foreach", "plain"])
def test_a_step_leaves_the_gradients_as_they_are(kernel, state_dtype, coupled):
    """Whoever logs or accumulates them looks at them afterwards."""
    model = tiny()
    cls = AdaFisher if coupled else AdaFisherW
    optimizer = cls(model, lr=1e-2, weight_decay=0.1, nesterov=True, state_dtype=state_dtype, kernel=kernel)
    next_token_loss(model, tiny_batches(1)[0]).backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in model.named_parameters())
