"""AdamQLR against matrices that are formed, by hand, in float64; and what may and may not be around it."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian, jacrev
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from adafisher_hf import AdamQLR
from adafisher_hf.family.curvature import ForwardProduct
from adafisher_hf.family.passes import ForwardPass, Randomness, loss_now
from tests.family.members import convolutions, images
from tests.models import Tiny, llama, next_token_loss, tiny_batches

Y = torch.tensor([0, 2, 1, -100, 2, 0])  # -100: a masked token


def mlp(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(dropout), nn.Linear(5, 3)).double()


def inputs(seed=1, count=6):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)).double()


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def function_of_weights(model, x):
    """The outputs of a model as a function of one vector."""
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def function(theta):
        parts = theta.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return functional_call(model, weights, (x,))

    return function


class Oracle:
    """The rule as it is printed, with C formed as a matrix."""

    def __init__(self, weight_decay=0.0, lr_clip=float("inf")):
        self.m, self.v, self.t, self.damping = 0.0, 0.0, 0, 1e-3
        self.weight_decay, self.clip = weight_decay, lr_clip

    def step(self, outputs, loss_of_outputs, theta, hessian_of_outputs):
        def loss(theta):
            return loss_of_outputs(outputs(theta))

        g = torch.func.grad(loss)(theta)
        jacobian = jacrev(outputs)(theta).flatten(0, -2)
        matrix = jacobian.T @ hessian_of_outputs(outputs(theta)) @ jacobian
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * g, 0.999 * self.v + 0.001 * g**2
        d = -(self.m / (1 - 0.9**self.t)) / ((self.v / (1 - 0.999**self.t)).sqrt() + 1e-8)
        q = d @ matrix @ d + self.damping * d @ d
        alpha = float((-g @ d / q).clamp(-self.clip, self.clip))
        new = theta + alpha * d - self.weight_decay * theta
        rho = (loss(new) - loss(theta)) / (0.5 * alpha**2 * q + alpha * g @ d)
        self.damping = max(self.damping * (0.5 if rho > 0.75 else 2.0 if rho < 0.25 else 1.0), 1e-8)
        return new, alpha


def softmax_hessian(z):
    """diag p - p pᵀ of every token that counts, as one matrix, for their mean."""
    blocks = [torch.diag(p) - torch.outer(p, p) for p in z.softmax(-1)]
    return torch.block_diag(*[block * (label >= 0) / (Y >= 0).sum() for block, label in zip(blocks, Y, strict=True)])


@pytest.mark.parametrize("knobs", [{}, {"weight_decay": 1e-3, "lr_clip": 0.2}], ids=["plain", "clipped, decayed"])
def test_classification_with_a_masked_token(knobs):
    model, x, oracle = mlp(), inputs(), Oracle(**knobs)
    optimizer = AdamQLR(model.parameters(), model=model, **knobs)
    for _ in range(6):
        expected = oracle.step(
            function_of_weights(model, x), lambda z: F.cross_entropy(z, Y), flat(model), softmax_hessian
        )
        optimizer.step(lambda: F.cross_entropy(model(x), Y))
        torch.testing.assert_close(flat(model), expected[0], rtol=1e-9, atol=1e-11)
        assert optimizer.logged()["adamqlr/lr"] == pytest.approx(expected[1], rel=1e-9)
        assert optimizer.param_groups[0]["damping"] == oracle.damping


def test_regression():
    """Of the mean of squared errors H is 2/n; ‖j‖² in the mean of their halves."""
    model, x, y, oracle = mlp(), inputs(), inputs(2)[:, :3], Oracle()
    optimizer = AdamQLR(model)
    for _ in range(6):
        expected, _ = oracle.step(
            function_of_weights(model, x),
            lambda z: F.mse_loss(z, y) / 2,
            flat(model),
            lambda z: torch.eye(z.numel()).double() / z.numel(),
        )
        optimizer.step(lambda: F.mse_loss(model(x), y) / 2)
        torch.testing.assert_close(flat(model), expected, rtol=1e-9, atol=1e-11)


TARGETS = inputs(2)[:, :3]
LOSSES = {
    "mean": lambda z: F.cross_entropy(z, Y),
    "sum": lambda z: F.cross_entropy(z, Y, reduction="sum") / 7,
    "none": lambda z: (F.cross_entropy(z, Y, reduction="none") * torch.arange(6)).sum(),
    "weights": lambda z: F.cross_entropy(z, Y, weight=torch.tensor([1.0, 2, 3]).double(), label_smoothing=0.2),
    "probabilities": lambda z: F.cross_entropy(input=z, target=TARGETS.softmax(-1)),
    "binary": lambda z: F.binary_cross_entropy_with_logits(z, (Y[:, None] > 0).double().expand(6, 3)),
    "huber": lambda z: F.huber_loss(z, TARGETS, delta=0.3),
    "squares and a sum": lambda z: 3 * F.mse_loss(z, TARGETS) + F.cross_entropy(z, Y) + z.sum(),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_slope_and_curvature_of_a_loss(loss):
    model, x = mlp(), inputs()
    outputs = function_of_weights(model, x)
    theta, d = flat(model), torch.randn(43).double()
    parts = d.split([p.numel() for p in model.parameters()])
    direction = {name: part.view(p.shape) for (name, p), part in zip(model.named_parameters(), parts, strict=True)}
    found = ForwardProduct(model).along(
        [ForwardPass(lambda: loss(model(x)), Randomness([]), torch.zeros(()))], direction
    )
    jacobian = jacrev(outputs)(theta).flatten(0, -2)
    matrix = jacobian.T @ hessian(loss)(outputs(theta)).reshape(18, 18) @ jacobian
    torch.testing.assert_close(found.curvature, d @ matrix @ d, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        found.slope, torch.func.grad(lambda t: loss(outputs(t)))(theta) @ d, rtol=1e-10, atol=1e-12
    )


def test_a_loss_of_log_probabilities_has_the_curvature_of_the_logits():
    ends = []
    for loss in (lambda z: F.nll_loss(F.log_softmax(z, -1), Y), lambda z: F.cross_entropy(z, Y)):
        model, x = mlp(), inputs()
        optimizer = AdamQLR(model)
        for _ in range(3):
            optimizer.step(lambda: loss(model(x)))  # noqa: B023
        ends.append(flat(model))
    torch.testing.assert_close(*ends, rtol=1e-11, atol=1e-12)


class Rosenbrock(nn.Module):
    def __init__(self):
        super().__init__()
        self.xy = nn.Parameter(torch.tensor([1.0, -1.0]).double())

    def forward(self):
        x, y = self.xy
        residuals = torch.stack([1 - x, 10 * (y - x**2)])
        return F.mse_loss(residuals, torch.zeros_like(residuals), reduction="sum")


def test_rosenbrock_without_tuning():
    """200 steps from (1, -1), as in the paper: Adam with the best learning rate of a grid stays behind."""

    def end(make):
        model = Rosenbrock()
        optimizer = make(model)
        for _ in range(200):
            optimizer.zero_grad()
            model().backward()
            optimizer.step()
        return model().item()

    best = min(
        end(lambda model, lr=lr: torch.optim.Adam(model.parameters(), lr=lr)) for lr in (0.003, 0.01, 0.03, 0.1, 0.3, 1)
    )
    assert end(AdamQLR) < min(1e-5, best / 10)


class Language(Tiny):
    """Returns its loss, in float64: the models of transformers return theirs in float32."""

    def forward(self, input_ids, labels=None):
        return {"loss": next_token_loss(super().forward, input_ids)}


def language():
    torch.manual_seed(0)
    return Language().double()


def after(parts=1, closure=None, clip=1.0):
    """The weights after some steps on batches in parts."""
    model = language()
    optimizer = AdamQLR(model, eps=1e-30)
    for ids in tiny_batches(4, shape=(6, 7)):
        if closure is not None:
            optimizer.step(lambda: closure(model, ids))  # noqa: B023
            continue
        optimizer.zero_grad()
        for part in ids.chunk(parts):
            (model(part)["loss"] / parts).backward()
        for param in model.parameters():
            param.grad.mul_(clip)
        optimizer.step()
    return flat(model)


def with_backward(model, ids):
    model.zero_grad()
    loss = model(ids)["loss"]
    loss.backward()
    return loss


WAYS = {
    "micro-batches": dict(parts=3),
    "a closure": dict(closure=with_backward),
    "a closure without backward": dict(closure=lambda model, ids: model(ids)["loss"]),
    "clipped gradients": dict(clip=1e-3),  # Adam's direction is the same, and gᵀd is that of the loss
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_ways_to_the_same_step(way):
    torch.testing.assert_close(after(**way), after(), rtol=1e-9, atol=1e-9)


def test_padding_is_left_out_as_the_loss_leaves_it_out():
    model, ids = llama().double(), tiny_batches(1, shape=(3, 7))[0]
    short = AdamQLR(model)
    model(input_ids=ids[:, :5], labels=ids[:, :5]).loss.backward()
    short.step()
    padded = llama().double()
    optimizer = AdamQLR(padded)
    mask = torch.arange(7).expand(3, 7) < 5
    padded(input_ids=ids, attention_mask=mask.long(), labels=ids.masked_fill(~mask, -100)).loss.backward()
    optimizer.step()
    torch.testing.assert_close(flat(padded), flat(model), rtol=1e-10, atol=1e-10)


def test_dropout_is_the_same_in_all_passes():
    """Without a step the last pass sees the loss of the first, and random numbers go on as after the first."""
    model, x = mlp(dropout=0.5), inputs()
    optimizer = AdamQLR(model, lr=0.0)
    seen = []

    def closure():
        loss = F.cross_entropy(model(x), Y)
        seen.append(loss.detach())
        return loss

    torch.manual_seed(5)
    optimizer.step(closure)
    position = torch.get_rng_state()
    assert len(seen) == 3 and seen[0] == seen[2]
    torch.manual_seed(5)
    model(x)
    assert torch.equal(position, torch.get_rng_state())
    torch.manual_seed(6)
    assert F.cross_entropy(model(x), Y) != seen[0]


def test_buffers_see_the_training_pass_alone():
    twins = convolutions(), convolutions()
    optimizer = AdamQLR(twins[0])
    (x, y), *_ = images(1)
    optimizer.step(lambda: F.cross_entropy(twins[0](x), y))
    twins[1](x)
    for (name, a), b in zip(twins[0].named_buffers(), twins[1].buffers(), strict=True):
        assert torch.equal(a, b), name


def test_gradients_are_those_of_the_first_pass():
    model, x = mlp(), inputs()
    optimizer = AdamQLR(model)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), Y)
        loss.backward()
        return loss

    closure()
    expected = [param.grad.clone() for param in model.parameters()]
    optimizer.step(closure)
    for param, grad in zip(model.parameters(), expected, strict=True):
        assert torch.equal(param.grad, grad)


def test_a_schedule_multiplies_the_whole_step():
    def moved(factor):
        model, x = mlp(), inputs()
        optimizer = AdamQLR(model, lr=7.0, weight_decay=1e-3)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: factor)
        optimizer.step(lambda: F.cross_entropy(model(x), Y))
        return flat(model) - flat(mlp())

    torch.testing.assert_close(moved(0.25), moved(1.0) / 4, rtol=1e-9, atol=1e-14)
    assert not moved(0.0).any()
    model, x = mlp(), inputs()
    optimizer = AdamQLR(
        [{"params": [p], "lr": lr} for p, lr in zip(model.parameters(), (1, 2, 3, 4), strict=True)], model=model
    )
    optimizer.param_groups[1]["lr"] = 1.0
    with pytest.raises(
        ValueError, match=r"one schedule for all parameter groups, not factors of \[1.0, 0.5, 1.0, 1.0\]"
    ):
        optimizer.step(lambda: F.cross_entropy(model(x), Y))


def test_evaluations_and_discarded_batches_do_not_count():
    def run(disturb):
        model = llama().double()
        optimizer = AdamQLR(model)
        for ids in tiny_batches(3, shape=(4, 7)):
            if disturb:
                with torch.no_grad():
                    model(input_ids=ids, labels=ids)
                model(input_ids=ids[:1], labels=ids[:1])  # without a backward pass
                model(input_ids=ids[1:], labels=ids[1:]).loss.backward()
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        return flat(model)

    assert torch.equal(run(True), run(False))


def test_experts_run_eagerly_in_the_product_alone(caplog):
    sizes = dict(vocab_size=11, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_local_experts=3)
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, output_router_logits=True)
    )
    optimizer = AdamQLR(model)
    with caplog.at_level(logging.WARNING, "adafisher_hf"):
        for ids in tiny_batches(2):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
    (message,) = caplog.messages
    assert (
        message
        == "_grouped_mm has no forward-mode derivative: AdamQLR runs attention and experts eagerly for its product"
    )
    assert model.config._experts_implementation == "grouped_mm"
    assert optimizer.logged()["adamqlr/lr"] > 0


def checkpointed(reentrant):
    sizes = dict(vocab_size=11, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(**sizes)).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


def labelled(model, **more):
    ids = tiny_batches(1)[0]
    return lambda: model(input_ids=ids, **more).loss.backward()


@pytest.mark.filterwarnings("ignore:.*checkpoint")
def test_checkpoints():
    for reentrant in (False, True):
        model, ids = checkpointed(reentrant), tiny_batches(1)[0]
        optimizer = AdamQLR(model)
        model(input_ids=ids, labels=ids).loss.backward()
        if reentrant:
            with pytest.raises(
                ValueError, match="needs forward-mode derivatives, and an autograd function of the model"
            ):
                optimizer.step()
        else:
            optimizer.step()


def test_what_it_cannot_see_is_said():
    model, ids = llama(), tiny_batches(1)[0]
    optimizer = AdamQLR(model)
    F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), ids.flatten()).backward()
    with pytest.raises(ValueError, match="the model returned none: pass labels to it .* or give step\\(\\) a closure"):
        optimizer.step()
    with pytest.raises(ValueError, match="has seen no forward and backward pass of its model since the last step"):
        optimizer.step()
    with pytest.raises(
        ValueError, match="knows the curvature of no function that this loss is made of: it knows cross_"
    ):
        optimizer.step(lambda: model(input_ids=ids).logits.square().sum())
    with pytest.raises(TypeError, match="the closure must return the loss, a tensor, not 1.0"):
        optimizer.step(lambda: 1.0)
    with pytest.raises(ValueError, match="AdamQLR needs the model to run it again: pass model=model"):
        AdamQLR(model.parameters())
    with pytest.raises(ValueError, match="a parameter of shape \\(64, 32\\) is not one of the model's"):
        AdamQLR(llama().parameters(), model=model)


def test_a_step_without_learning_rate_is_warned_of(caplog):
    AdamQLR(mlp(), weight_decay=0.1)
    assert caplog.messages == [
        "AdamQLR multiplies weight_decay by no learning rate: every step takes 10 % of each weight away"
    ]


def test_hooks_go_with_the_optimizer():
    model = llama()
    optimizer = AdamQLR(model)
    assert model._forward_hooks and model._forward_pre_hooks
    del optimizer
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_the_loss_again():
    model, ids = language(), tiny_batches(1)[0]
    optimizer = AdamQLR(model)
    loss = model(ids)["loss"]
    expected = 3 * loss.detach()
    loss *= 3  # as the Trainer does on several ranks
    loss.backward()
    (one,) = optimizer._recorder.passes
    assert one.loss * one.scale == expected == loss_now(model, [one])


def test_damping_has_a_floor():
    """Of a linear model the quadratic one is right at every step."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1).double(), inputs(count=20)
    y = x.sum(1, keepdim=True) + inputs(2, count=20)[:, :1]
    optimizer = AdamQLR(model)
    for _ in range(20):
        optimizer.step(lambda: F.mse_loss(model(x), y))
        assert optimizer.logged()["adamqlr/rho"] == pytest.approx(1, abs=0.05)
    assert optimizer.param_groups[0]["damping"] == 1e-8
