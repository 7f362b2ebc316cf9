"""What holds for every member: checkpoints, precision, what comes before a step, bad input."""

from __future__ import annotations

import copy
import io
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from adafisher_hf import SOAP, AdaFisherW, AdamQLR, FAdam, Muon, SIRFShampoo
from adafisher_hf.config.knobs import knobs_of
from tests.family.members import MEMBERS, WITH_MODEL, assert_same, everything, make, train, trained
from tests.models import next_token_loss, tiny, tiny_batches

ROOT = Path(__file__).parents[2]
every_member = pytest.mark.parametrize("name", MEMBERS)


def saved_and_read(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@every_member
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_resumed_training_ends_in_the_same_bits(name, dtype):
    batches = tiny_batches(6)
    whole = trained(name, batches, dtype)
    model, optimizer = trained(name, batches[:3], dtype)
    weights, state = saved_and_read((model.state_dict(), optimizer.state_dict()))
    other = tiny(seed=1, dtype=dtype)
    other.load_state_dict(weights)
    resumed = make(name, other)
    resumed.load_state_dict(state)
    train(other, resumed, batches[3:])
    assert_same(everything(*whole), everything(other, resumed))


@every_member
def test_a_copy_goes_on_by_itself(name):
    batches = tiny_batches(5)
    whole = trained(name, batches)
    model, optimizer = trained(name, batches[:3])
    twin, copied = copy.deepcopy((model, optimizer))
    copied = copied if isinstance(copied, WITH_MODEL) else make(name, twin)  # torch's own copies know other parameters
    copied.load_state_dict(optimizer.state_dict())
    train(model, optimizer, tiny_batches(2, seed=9))
    train(twin, copied, batches[3:])
    assert_same(everything(*whole), everything(twin, copied))


@every_member
def test_the_first_step_makes_the_state_of_every_parameter(name):
    """Distributed checkpoints drop what appears later."""
    model = tiny()
    optimizer = make(name, model)
    optimizer.step(lambda: backward(nn.functional.mse_loss(model.up(model.gate), torch.zeros(6, 8).double())))
    keys = {param: set(optimizer.state[param]) for param in model.parameters()}
    assert [int(optimizer.state[param]["step"]) for param in (model.up.weight, model.norm.weight)] == [1, 0]
    train(model, optimizer, tiny_batches(2))
    assert keys == {param: set(optimizer.state[param]) for param in model.parameters()}


@every_member
def test_asking_for_the_state_before_training_changes_nothing(name):
    """Distributed checkpoints take a step with zero gradients for it."""
    batches = tiny_batches(3)
    model = tiny()
    optimizer = make(name, model)
    get_optimizer_state_dict(model, optimizer)
    assert len(optimizer.state) == len(list(model.parameters()))
    train(model, optimizer, batches)
    assert_same(everything(model, optimizer), everything(*trained(name, batches)))


@every_member
def test_state_of_half_precision_weights(name):
    _, optimizer = trained(name, tiny_batches(2), torch.bfloat16)
    for state in optimizer.state.values():
        assert state.pop("compensation").dtype == torch.bfloat16
        assert {value.dtype for value in state.values()} == {torch.float32}
    _, nearest = trained(name, tiny_batches(2), torch.bfloat16, rounding="nearest")
    assert not any("compensation" in state for state in nearest.state.values())
    assert not any("compensation" in state for state in trained(name, tiny_batches(2))[1].state.values())


@pytest.mark.parametrize("cls", [FAdam, SIRFShampoo])
def test_half_precision_weights_keep_what_rounding_cuts_off(cls):
    """Steps of less than half a digit add up, as they do in float32."""
    knobs = {"batch_size": 1} if cls is SIRFShampoo else {}
    ends = {}
    for dtype, rounding in ((torch.float32, "kahan"), (torch.bfloat16, "kahan"), (torch.bfloat16, "nearest")):
        theta = nn.Parameter(torch.ones(4, dtype=dtype))
        optimizer = cls([theta], lr=1e-4, weight_decay=0.0, rounding=rounding, **knobs)
        for _ in range(100):
            theta.grad = torch.ones(4, dtype=dtype) * 0.1
            optimizer.step()
        ends[dtype, rounding] = float(theta.detach()[0])
    assert ends[torch.bfloat16, "nearest"] == 1.0
    assert ends[torch.float32, "kahan"] < 0.995
    assert ends[torch.bfloat16, "kahan"] == pytest.approx(ends[torch.float32, "kahan"], abs=2**-8)


@every_member
def test_every_member_learns_in_half_precision(name):
    model = tiny(dtype=torch.bfloat16)
    losses = train(model, make(name, model), tiny_batches(1) * 30)
    assert losses[-1] < losses[0] - 1


@every_member
def test_the_knobs_of_a_resumed_run_are_its_own(name):
    knob, value = {"fadam": ("clip", 0.5), "adamqlr": ("damping_increase", 3.0), "muon": ("ns_steps", 3)}.get(
        name, ("factor_lr", 0.5)
    )
    _, optimizer = trained(name, tiny_batches(2))
    state = optimizer.state_dict()
    state["param_groups"][0] |= {"lr": 0.125, "damping": 0.25}  # of a schedule, and of the steps
    resumed = make(name, tiny(), **{knob: value})
    resumed.load_state_dict(state)
    assert resumed.param_groups[0][knob] == value and resumed.param_groups[0]["lr"] == 0.125
    if name == "adamqlr":  # is moved by the steps
        assert resumed.param_groups[0]["damping"] == 0.25 != resumed.config.damping


def refused(optimizer, state, message, kind=ValueError):
    before = optimizer.state_dict()
    with pytest.raises(kind, match=message):
        optimizer.load_state_dict(state)
    assert str(optimizer.state_dict()) == str(before)


def test_states_that_do_not_fit():
    model, optimizer = trained("sirfshampoo", tiny_batches(2))
    state = optimizer.state_dict()
    refused(make("fadam", tiny()), state, "was not saved by FAdam: resume with the optimizer that saved it")
    refused(make("fadam", tiny()), AdaFisherW(model, lr=1).state_dict(), "was not saved by FAdam")
    refused(make("fadam", tiny()), {"weights": 1}, "no optimizer state: optimizer.state_dict\\(\\) makes one")
    other = make("sirfshampoo", tiny(), structure="diagonal")
    message = r"a parameter of shape \(6, 6\) \(factor is missing, not \(6, 6\) of float64, .*factor_0 is \(6, 6\)"
    refused(other, state, message)
    refused(
        make("sirfshampoo", tiny(dtype=torch.float32)), state, r"momentum_buffer is \(6, 6\) of float64, not .*float32"
    )
    one = SIRFShampoo([model.gate], batch_size=1)
    refused(one, state, r"has groups of \[7\] parameters, SIRFShampoo has \[1\]")


def test_a_group_may_come_later():
    for name in MEMBERS:
        model = tiny()
        model.gate.requires_grad_(False)
        optimizer = make(name, model)
        for group in optimizer.param_groups:
            group["params"] = [param for param in group["params"] if param is not model.gate]
        train(model, optimizer, tiny_batches(2))
        model.gate.requires_grad_(True)
        before = model.gate.detach().clone()
        optimizer.add_param_group({"params": [model.gate], "weight_decay": 0.0})
        train(model, optimizer, tiny_batches(2))
        assert not torch.equal(before, model.gate) and optimizer.state[model.gate]["step"] == 2
        assert len({group.get("damping") for group in optimizer.param_groups}) == 1


@every_member
@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"lr": -1}, ValueError, "lr must be at least 0, not -1, and finite"),
        ({"weight_decay": float("nan")}, ValueError, "weight_decay must be at least 0, not nan, and finite"),
        ({"lr": "fast"}, TypeError, "lr must be a number, not 'fast'"),
        ({"gamma": 0.9}, TypeError, "unknown argument 'gamma', which is an option of AdaFisher"),
        ({"roundin": "kahan"}, TypeError, "unknown argument 'roundin', did you mean 'rounding'\\?"),
        ({"rounding": "up"}, ValueError, "rounding must be one of 'kahan', 'nearest', got 'up'"),
    ],
)
def test_arguments(name, changes, kind, message):
    with pytest.raises(kind, match=message):
        make(name, tiny(), **changes)


@every_member
def test_parameters(name):
    frozen = tiny().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing trainable"):
        make(name, frozen)
    turning = nn.Module()
    turning.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="complex parameters are not supported"):
        make(name, turning)
    sparse = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2))
    optimizer = make(name, sparse)
    with pytest.raises(ValueError, match="takes no sparse gradients: make the embedding with sparse=False"):
        optimizer.step(lambda: backward(nn.functional.cross_entropy(sparse(torch.tensor([1])), torch.tensor([0]))))


def backward(loss):
    loss.backward()
    return loss


def test_a_group_with_a_wrong_number_is_not_added():
    optimizer = FAdam(tiny().parameters())
    with pytest.raises(ValueError, match="clip must be a number > 0, got 0"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "clip": 0.0})
    assert len(optimizer.param_groups) == 1


def test_they_take_a_model_tensors_and_groups():
    for cls, knobs in MEMBERS.values():
        model = tiny()
        more = {"model": model} if cls in WITH_MODEL else {}
        groups = [{"params": [model.gate], "weight_decay": 0.0}, {"params": [model.up.weight]}]
        for params in (model, model.parameters(), model.named_parameters(), groups):
            optimizer = cls(params, **knobs, **more)
            next_token_loss(model, tiny_batches(1)[0]).backward()
            optimizer.step(lambda m=model: backward(next_token_loss(m, tiny_batches(1)[0])))


@pytest.mark.parametrize("cls", [FAdam, SIRFShampoo, AdamQLR, Muon, SOAP])
def test_the_page_has_every_option_with_its_default(cls):
    page = (ROOT / f"docs/family/{cls.name}.md").read_text()
    table = re.findall(r"^\| (`.*?) \| (.*?) \|", page.split("| key | default |")[1].split("```")[0], re.M)
    shown = [(key, value) for keys, values in table for key, value in pairs(keys, values)]
    knobs = knobs_of(cls.config_class)
    assert sorted(key for key, _ in shown) == sorted(knobs)
    for key, value in shown:
        default = knobs[key].default
        assert value in (f"`{default}`", "the Trainer's", "none") or float(value) == default, key
        assert (default is None) == (value in ("the Trainer's", "none")), key


def pairs(keys, values):
    return zip(re.findall(r"`(\w+)`", keys), values.split(", "), strict=True)
