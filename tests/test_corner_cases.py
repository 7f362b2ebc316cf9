"""The corner cases of the calibrated mode, one test each."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from adafisher_hf import AdaFisher, AdaFisherW
from tests.models import llama, next_token_loss, tiny, tiny_batches

KERNELS = pytest.mark.parametrize("kernel", ["plain", "foreach"])


def step(model, optimizer, ids=None):
    optimizer.zero_grad()
    next_token_loss(model, tiny_batches(1)[0] if ids is None else ids).backward()
    optimizer.step()


def state_of(optimizer):
    return {(i, key): value.clone() for i, state in enumerate(optimizer.state.values()) for key, value in state.items()}


def assert_same(before, after, where=lambda key: True):
    assert before.keys() == after.keys()
    for key in before:
        if where(key):
            assert torch.equal(before[key], after[key]), key


def test_a_closure_is_the_same_as_its_calls_before_the_step():
    """Lightning's automatic optimisation hands over what zeroes the gradients and runs both passes."""
    plain, closed = tiny(), tiny()
    optimizers = [AdaFisherW(m.parameters(), model=m, update_interval=2, update_warmup=0) for m in (plain, closed)]
    for ids in tiny_batches(5):
        step(plain, optimizers[0], ids)

        def closure(ids=ids):
            optimizers[1].zero_grad()
            loss = next_token_loss(closed, ids)
            loss.backward()
            return loss

        assert optimizers[1].step(closure).requires_grad
    for p, q in zip(plain.parameters(), closed.parameters(), strict=True):
        assert torch.equal(p, q)


@KERNELS
def test_zero_gradient_gives_zero_update(kernel):
    """σ = 0 → a = 0: no absolute eps, no NaN."""
    model = nn.Linear(3, 2).double()
    optimizer = AdaFisherW(model.parameters(), model=model, lr=0.1, kernel=kernel)
    model(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    model.bias.grad.zero_()
    bias = model.bias.detach().clone()
    optimizer.step()
    assert torch.equal(model.bias.detach(), bias)
    assert torch.isfinite(model.weight).all()


@KERNELS
def test_lora_a_has_unit_curvature_while_b_is_zero(kernel):
    class LoRA(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 2, bias=False), nn.Linear(2, 4, bias=False)
            nn.init.zeros_(self.b.weight)

        def forward(self, x):
            return self.b(self.a(x))

    torch.manual_seed(0)
    model = LoRA().double()
    optimizer = AdaFisherW(model.parameters(), model=model, lr=1e-2, kernel=kernel)
    for i in range(3):
        optimizer.zero_grad()
        (model(torch.randn(8, 6, dtype=torch.float64)) - 1).square().mean().backward()
        before = model.a.weight.detach().clone()
        optimizer.step()
        if i == 0:
            assert torch.equal(optimizer.curvature(model.a.weight), torch.ones_like(model.a.weight))
            assert torch.equal(model.a.weight.detach(), before)
    assert optimizer.curvature(model.a.weight).std() > 0
    assert all(torch.isfinite(p).all() for p in model.parameters())


@KERNELS
def test_rounding_noise_is_not_blown_up(kernel):
    """σ is at least 1e-7 × the RMS of all gradients of the step (BERT's key bias)."""
    model = nn.Linear(4, 4).double()
    optimizer = AdaFisherW(model.parameters(), model=model, lr=1.0, kernel=kernel)
    model(torch.randn(8, 4, dtype=torch.float64)).square().mean().backward()
    model.bias.grad.copy_(torch.tensor([1.0, -1, 1, -1]) * 1e-13 * model.weight.grad.square().mean().sqrt())
    before = model.bias.detach().clone()
    optimizer.step()
    moved = (model.bias.detach() - before).abs().max()
    assert 0 < moved < 1e-5


@KERNELS
def test_no_gradient_changes_nothing(kernel):
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model, weight_decay=0.1, kernel=kernel)
    step(model, optimizer)
    next_token_loss(model, tiny_batches(2)[1]).backward()
    model.gate.grad = None
    gate, state = model.gate.detach().clone(), {k: v.clone() for k, v in optimizer.state[model.gate].items()}
    optimizer.step()
    assert torch.equal(model.gate.detach(), gate)
    assert all(torch.equal(value, state[key]) for key, value in optimizer.state[model.gate].items())


def test_every_state_key_exists_after_the_first_step():
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model)
    model.up(model.embed(tiny_batches(1)[0])).sum().backward()  # norm, down and gate get no gradient
    optimizer.step()
    keys = {name: set(optimizer.state[p]) for name, p in model.named_parameters()}
    step(model, optimizer)
    assert keys == {name: set(optimizer.state[p]) for name, p in model.named_parameters()}
    assert all({"exp_avg", "step", "sigma_sq", "row_factor_0", "col_factor_0"} <= k for k in keys.values())


@KERNELS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("cls", [AdaFisher, AdaFisherW])
def test_non_finite_gradient_keeps_weights_and_state(kernel, bad, cls):
    model = tiny()
    optimizer = cls(model.parameters(), model=model, weight_decay=0.1, kernel=kernel)
    step(model, optimizer)
    next_token_loss(model, tiny_batches(2)[1]).backward()
    model.gate.grad[0, 0] = bad
    gate, state = model.gate.detach().clone(), {k: v.clone() for k, v in optimizer.state[model.gate].items()}
    others = model.up.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.gate.detach(), gate)
    for key, value in optimizer.state[model.gate].items():
        assert torch.equal(value, state[key]), key
    assert torch.isfinite(model.up.weight).all() and not torch.equal(model.up.weight.detach(), others)


@pytest.mark.parametrize("where", ["activation", "gradient"])
def test_non_finite_values_never_enter_the_statistics(where):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).double()
    optimizer = AdaFisherW(model.parameters(), model=model)
    x = torch.randn(4, 3, dtype=torch.float64)

    def backward(poison):
        optimizer.zero_grad()
        inputs = x * (float("inf") if poison and where == "activation" else 1.0)
        (model(inputs).sum() * (float("nan") if poison and where == "gradient" else 1.0)).backward()
        optimizer.step()

    backward(False)
    before = state_of(optimizer)
    backward(True)
    # a bias may still have a finite gradient and take its step; its statistics come with the poisoned ones
    assert_same(before, state_of(optimizer), where=lambda key: "factor" in key[1])
    backward(False)
    assert all(torch.isfinite(value).all() for value in state_of(optimizer).values())


def test_a_poisoned_micro_batch_is_left_out_of_the_sums():
    model, clean = nn.Linear(3, 2).double(), nn.Linear(3, 2).double()
    clean.load_state_dict(model.state_dict())
    optimizers = [AdaFisherW(m.parameters(), model=m) for m in (model, clean)]
    good, bad = torch.randn(4, 3, dtype=torch.float64), torch.full((4, 3), float("nan"), dtype=torch.float64)
    for m in (model, clean):
        m(good).square().sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model(bad).square().sum().backward()
    for p, grad in zip(model.parameters(), grads, strict=True):
        p.grad = grad
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(optimizers[0].curvature(model.weight), optimizers[1].curvature(clean.weight))


def test_a_forward_without_backward_leaves_no_trace():
    model, other = tiny(), tiny()
    optimizers = [AdaFisherW(m.parameters(), model=m) for m in (model, other)]
    for i, ids in enumerate(tiny_batches(4)):
        next_token_loss(model, tiny_batches(9)[i + 4])  # loss discarded
        with torch.no_grad():
            next_token_loss(model, tiny_batches(9)[0])
        for m, optimizer in zip((model, other), optimizers, strict=True):
            step(m, optimizer, ids)
    assert_same(state_of(optimizers[0]), state_of(optimizers[1]))


def test_an_owner_that_did_not_fire_keeps_its_average():
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model, gamma=0.5)
    step(model, optimizer)
    before = {k: v.clone() for k, v in optimizer.state[model.embed.weight].items()}
    optimizer.zero_grad()
    model.head(torch.randn(2, 3, 6, dtype=torch.float64)).square().sum().backward()  # the embedding is not called
    optimizer.step()
    after = optimizer.state[model.embed.weight]
    for key in ("row_factor_0", "col_factor_0", "factor_weight_0"):
        assert torch.equal(before[key], after[key])
    assert before["factor_weight_1"] != after["factor_weight_1"]


def test_dry_step_of_distributed_checkpoints_touches_nothing():
    """torch.distributed.checkpoint makes the state by a step with zero gradients and lr 0, before training."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model, dry = tiny(), tiny()
    optimizers = [AdaFisherW(m.parameters(), model=m, lr=1e-2) for m in (model, dry)]
    get_optimizer_state_dict(dry, optimizers[1])
    assert optimizers[1].state
    for ids in tiny_batches(5):
        for m, optimizer in zip((model, dry), optimizers, strict=True):
            step(m, optimizer, ids)
    assert_same(state_of(optimizers[0]), state_of(optimizers[1]))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), dry.parameters(), strict=True))


def test_learning_rate_zero_is_a_real_step():
    """A warm-up starts at 0: its statistics count."""
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model, lr=0.0)
    step(model, optimizer)
    assert optimizer.state[model.up.weight]["factor_weight_0"] > 0


def test_coupled_decay_is_scaled_by_sigma():
    model = nn.Linear(3, 2, bias=False).double()
    optimizer = AdaFisher(model.parameters(), model=model, lr=0.0, weight_decay=0.5, beta=0.0)
    model(torch.randn(4, 3, dtype=torch.float64)).square().mean().backward()
    grad, sigma = model.weight.grad.clone(), model.weight.grad.square().mean().sqrt()
    optimizer.step()
    torch.testing.assert_close(optimizer.state[model.weight]["exp_avg"], grad + 0.5 * sigma * model.weight.detach())


def test_refresh_schedule_is_dense_then_sparse():
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model, update_warmup=3, update_interval=4)
    refreshed = []
    for i, ids in enumerate(tiny_batches(13)):
        before = optimizer.state.get(model.up.weight, {}).get("row_factor_0", torch.zeros(1)).clone()
        step(model, optimizer, ids)
        if not torch.equal(before, optimizer.state[model.up.weight]["row_factor_0"]):
            refreshed.append(i)
    assert refreshed == [0, 1, 2, 4, 8, 12]


def test_default_gamma_is_095_in_the_warm_up_and_08_after():
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model, update_warmup=2, update_interval=1)
    weights = []
    for ids in tiny_batches(4):
        step(model, optimizer, ids)
        weights.append(optimizer.state[model.up.weight]["factor_weight_0"].item())
    expected = [0.05, 0.0975, 0.278, 0.4224]
    assert weights == pytest.approx(expected)


def test_experts_are_blocks_of_their_own():
    """Scaling one expert's gradient changes that expert's update only by direction, never its neighbours'."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 4, 5, dtype=torch.float64))

        def forward(self, x):
            return torch.einsum("ni,eoi->eno", x, self.w.transpose(1, 2).transpose(1, 2)).square().mean((1, 2))

    torch.manual_seed(0)
    moved = []
    for scale in (1.0, 100.0):
        torch.manual_seed(0)
        model = Experts()
        optimizer = AdaFisherW(model.parameters(), model=model, lr=1e-2)
        before = model.w.detach().clone()
        losses = model(torch.randn(7, 5, dtype=torch.float64))
        (losses * torch.tensor([scale, 1.0, 1.0])).sum().backward()
        optimizer.step()
        assert torch.allclose(optimizer.curvature(model.w).mean((1, 2)), torch.full((3,), 1.1, dtype=torch.float64))
        moved.append(model.w.detach() - before)
    torch.testing.assert_close(moved[0], moved[1])


@pytest.mark.parametrize("mode", ["calibrated", "paper", "reference"])
@KERNELS
def test_scalars_empty_tensors_and_groups(mode, kernel):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.empty = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.empty(0, 3))
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return (self.layer(x) * self.scale).square().mean() + self.empty.sum()

    model = Odd()
    groups = [
        {"params": [model.scale, model.empty], "lr": 1e-2, "weight_decay": 0.0},
        {"params": list(model.layer.parameters()), "lr": 0.0, "weight_decay": 0.1, "beta": 0.5},
    ]
    optimizer = AdaFisherW(groups, model=model, mode=mode, kernel=kernel)
    scale, weight = model.scale.item(), model.layer.weight.detach().clone()
    model(torch.randn(4, 3)).backward()
    optimizer.step()
    assert model.scale.item() != scale and torch.equal(model.layer.weight.detach(), weight)


def test_channels_last_weights_are_updated_in_place():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 2)
    other = nn.Conv2d(3, 4, 2)
    other.load_state_dict(model.state_dict())
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 5, 5)
    for m in (model, other):
        optimizer = AdaFisherW(m.parameters(), model=m, lr=1e-2)
        m(x).square().mean().backward()
        optimizer.step()
    assert model.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.weight, other.weight)


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_close_takes_every_hook_off():
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model)
    assert hooks_of(model) > 0
    optimizer.close()
    optimizer.close()
    assert hooks_of(model) == 0
    step(model, optimizer)


@pytest.mark.parametrize("mode", ["calibrated", "reference"])
def test_garbage_collection_takes_every_hook_off(mode):
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model, mode=mode)
    step(model, optimizer)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None and hooks_of(model) == 0


def test_the_optimizer_does_not_outlive_its_model():
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model)
    step(model, optimizer)
    gone = weakref.ref(model)
    del model, optimizer
    gc.collect()
    assert gone() is None


def test_memory_does_not_grow():
    model = tiny(dtype=torch.float32)
    optimizer = AdaFisherW(model.parameters(), model=model)

    def tensors():
        gc.collect()
        return sum(isinstance(o, torch.Tensor) for o in gc.get_objects())

    for ids in tiny_batches(10):
        step(model, optimizer, ids)
    before = tensors()
    for ids in tiny_batches(200):
        step(model, optimizer, ids)
    assert tensors() <= before + 2


def test_unfreezing_in_mid_training():
    model = tiny()
    model.up.requires_grad_(False)
    optimizer = AdaFisherW([p for p in model.parameters() if p.requires_grad], model=model, update_warmup=100)
    step(model, optimizer)
    model.up.requires_grad_(True)
    optimizer.add_param_group({"params": list(model.up.parameters())})
    before = model.up.weight.detach().clone()
    step(model, optimizer)
    assert not torch.equal(before, model.up.weight.detach())
    assert optimizer.curvature(model.up.weight).std() > 0


@pytest.mark.parametrize("tied", [True, False])
def test_a_loss_that_bypasses_the_head_is_said(tied, caplog):
    """Liger's fused loss multiplies by the head's weight itself."""
    model, ids = llama(tie_word_embeddings=tied), torch.arange(12).view(2, 6)
    optimizer = AdaFisherW(model, lr=1e-3)
    for _ in range(2):
        logits = nn.functional.linear(model.model(input_ids=ids).last_hidden_state, model.lm_head.weight)
        nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
    assert [record.message.split()[0] for record in caplog.records] == ["lm_head"]
    assert "use_liger_kernel" in caplog.text
    assert optimizer.curvature(model.lm_head.weight).std() > 0


def test_a_head_that_runs_or_is_not_used_is_no_news(caplog):
    ids = torch.arange(12).view(2, 6)
    for loss in (
        lambda model: model(input_ids=ids, labels=ids).loss,
        lambda model: model.model(input_ids=ids).last_hidden_state.square().mean(),
    ):
        model = llama(tie_word_embeddings=False)
        optimizer = AdaFisherW(model, lr=1e-3)
        loss(model).backward()
        optimizer.step()
    assert not caplog.records


def test_freezing_and_unfreezing_around_a_step():
    model = nn.Linear(3, 2)
    optimizer = AdaFisherW(model.parameters(), model=model, lr=1e-2)
    model.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="'weight' is frozen and has no curvature yet"):
        optimizer.curvature(model.weight)
    model(torch.randn(4, 3)).square().mean().backward()
    optimizer.step()
    model.weight.requires_grad_(True)
    model(torch.randn(4, 3)).square().mean().backward()
    model.weight.requires_grad_(False)  # with a gradient: the step still takes it, as torch's optimizers do
    before = model.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model.weight, before)


def test_closed_it_steps_with_the_curvature_it_has():
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model)
    step(model, optimizer)
    optimizer.close()
    before = [optimizer.curvature(p).clone() for p in model.parameters()]
    step(model, optimizer)
    assert all(torch.equal(optimizer.curvature(p), old) for p, old in zip(model.parameters(), before, strict=True))


def test_copies_and_pickles_of_the_model_measure_nothing():
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        next_token_loss(other, tiny_batches(1)[0]).backward()
        assert not optimizer._statistics.fired()
        second = AdaFisherW(other.parameters(), model=other, lr=1e-2)
        step(other, second)
        assert second._statistics.gate is not optimizer._statistics.gate
        assert second.curvature(other.up.weight).std() > 0


def test_a_frozen_network_is_not_measured():
    """A GAN's generator sends its gradient through the discriminator, which rests."""
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model)
    for p in model.parameters():
        p.requires_grad_(False)
    hidden = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    model.down(model.up(hidden)).sum().backward()
    assert not optimizer._statistics.fired()


def test_the_whole_model_recomputed_in_the_backward_pass():
    curvatures = []
    for wrap in (lambda model, ids: model(ids), lambda model, ids: checkpoint(model, ids, use_reentrant=False)):
        model, ids = tiny(), tiny_batches(1)[0]
        optimizer = AdaFisherW(model.parameters(), model=model)
        wrap(model, ids).square().mean().backward()
        optimizer.step()
        curvatures.append([optimizer.curvature(p) for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*curvatures, strict=True))


def test_the_same_input_under_another_mask_is_measured_again():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2, bias=False)

        def forward(self, x, attention_mask=None):
            return self.layer(x)

    model, x = Net(), torch.randn(2, 4, 3)
    optimizer = AdaFisherW(model.parameters(), model=model, structure="kronecker", token_stride=1)
    expected = torch.zeros(3, 3)
    for mask in (torch.tensor([[1, 0, 0, 0]] * 2), torch.ones(2, 4)):
        model(x, attention_mask=mask).sum().backward()
        rows = x[mask.bool()]
        expected += rows.T @ rows
    torch.testing.assert_close(optimizer._statistics._taps[id(model.layer)].sums.input[0], expected)


def test_strided_tokens_stand_for_the_skipped_ones():
    """The two uses of a weight weigh the same, though one sees whole sequences and the other a list of tokens."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids).flatten(0, 1))

    model = Tied()
    optimizer = AdaFisherW(model.parameters(), model=model, structure="kronecker", token_stride=4)
    model(torch.zeros(4, 8, dtype=torch.long)).square().mean().backward()
    assert [tap.sums.tokens.item() for tap in optimizer._statistics._taps.values()] == [32.0, 32.0]


def test_damping_of_a_group_may_change_at_any_step():
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model, update_warmup=0, update_interval=10)
    step(model, optimizer)
    before = optimizer.curvature(model.up.weight)
    optimizer.param_groups[0]["damping"] += 0.5
    torch.testing.assert_close(optimizer.curvature(model.up.weight), before + 0.5)


def test_groups_of_a_convolution_without_hooks_keep_their_own_scale():
    """Depthwise, used functionally: every channel is one row, so the fallback is exact."""

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 1, groups=4, bias=False)

        def forward(self, x):
            return nn.functional.conv1d(x, self.conv.weight, groups=4)

    model = Functional().double()
    optimizer = AdaFisherW(model.parameters(), model=model, damping=1e-12)
    (model(torch.randn(2, 4, 5).double()) * torch.tensor([1.0, 5, 20, 100]).view(4, 1)).square().sum().backward()
    squared = model.conv.weight.grad.square()
    optimizer.step()
    torch.testing.assert_close(optimizer.curvature(model.conv.weight), squared / squared.mean(), rtol=1e-6, atol=1e-9)
