"""A saved state that does not fit is refused before anything changes; options that it is not made of may change."""

from __future__ import annotations

import copy
import logging
import math
import random
import re

import pytest
import torch

from adafisher_hf import AdaFisher, AdaFisherW
from tests.models import next_token_loss, tiny, tiny_batches

STRUCTURES = {
    "diagonal": {},
    "kronecker": {"structure": "kronecker", "basis_interval": 2},
    "orthogonal": {"structure": "orthogonal", "basis_interval": 2},
    "rotated": {"structure": "kronecker", "second_moment": "rotated"},
    "paper": {"mode": "paper"},
}


def trained(steps=3, dtype=torch.float64, cls=AdaFisherW, seed=0, **knobs):
    model = tiny(seed, dtype)
    optimizer = cls(model.parameters(), model=model, lr=1e-2, **knobs)
    train(model, optimizer, tiny_batches(steps))
    return model, optimizer


def train(model, optimizer, batches):
    for ids in batches:
        optimizer.zero_grad()
        next_token_loss(model, ids).backward()
        optimizer.step()


def saved(**options):
    return copy.deepcopy(trained(**options)[1].state_dict())


def frozen(optimizer):
    """All that a load may change, as plain values."""
    return copy.deepcopy(optimizer.state_dict()), [dict(group, params=None) for group in optimizer.param_groups]


def assert_unchanged(optimizer, before):
    state, groups = before
    now = optimizer.state_dict()
    assert now["param_groups"] == state["param_groups"] and frozen(optimizer)[1] == groups
    assert now["state"].keys() == state["state"].keys()
    for i, tensors in state["state"].items():
        assert tensors.keys() == now["state"][i].keys()
        assert all(torch.equal(value, now["state"][i][key]) for key, value in tensors.items())


def refused(state, message, error=ValueError, **knobs):
    """Loads into an optimizer that has not stepped and into one that has; both stay as they were."""
    for steps in (0, 2):
        model, optimizer = trained(steps, **knobs)
        before = frozen(optimizer)
        with pytest.raises(error, match=message):
            optimizer.load_state_dict(state)
        assert_unchanged(optimizer, before)
        train(model, optimizer, tiny_batches(1))  # and it goes on


def changed(change, **knobs):
    state = saved(**knobs)
    change(state)
    return state


def in_group(key, value):
    return lambda state: state["param_groups"][0].update({key: value})


def in_state(key, value, parameter=3):
    return lambda state: state["state"][parameter].update({key: value})


def poisoned(key, value):
    return lambda state: state["state"][3][key].view(-1)[-1:].fill_(value)


FOREIGN = {
    "no step": (lambda s: s["param_groups"][0].pop("step"), "group 0 has no 'step'"),
    "step of another type": (in_group("step", "3"), "step must be a whole number, at least 0, not '3'"),
    "negative step": (in_group("step", -1), "step must be a whole number, at least 0, not -1"),
    "no lr": (lambda s: s["param_groups"][0].pop("lr"), "group 0 has no 'lr'"),
    "damping nan": (in_group("damping", math.nan), "damping must be a number > 0, or none, got nan"),
    "lr nan": (in_group("lr", math.nan), "lr must be at least 0, not nan"),
    "beta 2": (in_group("beta", 2), "beta must be a number in"),
    "beta2 text": (in_group("beta2", "high"), "beta2 must be a number"),
    "momentum 2": (in_group("momentum", 2.0), "momentum, which a schedule of β sets: beta must be a number in"),
    "config": (in_group("config", 3), "not saved by AdaFisherW"),
    "config without pairs": (in_group("config", "beta"), "not saved by AdaFisherW"),
    "nan": (poisoned("exp_avg", math.nan), "exp_avg of 'up.bias' is not finite"),
    "inf": (poisoned("row_factor_0", math.inf), "row_factor_0 of 'up.bias' is not finite"),
    "no tensor": (in_state("exp_avg", 3.0), "exp_avg is float, not"),
    "a key too many": (in_state("exp_avg_sq", torch.zeros(2)), r"exp_avg_sq is \(2,\), not there"),
    "a key too few": (lambda s: s["state"][3].pop("sigma_sq"), r"sigma_sq is missing, not \(1,\)"),
    "dtype": (lambda s: s["state"][3].update(step=s["state"][3]["step"].float()), "step is float32, not float64"),
    "a parameter too many": (lambda s: s["state"].update({99: {}}), "state of a parameter 99 that no group has"),
    "no groups": (lambda s: s.pop("param_groups"), "no optimizer state: it has no 'param_groups'"),
    "no state": (lambda s: s.pop("state"), "no optimizer state: it has no 'state'"),
    "groups": (lambda s: s["param_groups"].append(s["param_groups"][0]), "2 parameter groups, not 1"),
    "parameters": (lambda s: s["param_groups"][0]["params"].pop(), "group 0 has .* parameters, not"),
    "no params": (lambda s: s["param_groups"][0].pop("params"), "group 0 has no 'params'"),
}


@pytest.mark.parametrize(("change", "message"), FOREIGN.values(), ids=FOREIGN)
def test_what_is_wrong_with_a_state_is_named_and_nothing_is_loaded(change, message):
    refused(changed(change), message, error=(TypeError, ValueError))


@pytest.mark.parametrize("state", [None, [], 3, {"state": [], "param_groups": []}, {"state": {}, "param_groups": 3}])
def test_what_is_no_state_at_all(state):
    refused(state, "no optimizer state", error=(TypeError, ValueError))


def test_a_float32_state_does_not_fit_a_float64_model():
    refused(saved(dtype=torch.float32), "exp_avg is float32, not float64")


def test_groups_that_disagree_on_the_step():
    def two():
        model = tiny()
        groups = [{"params": [model.up.weight]}, {"params": [model.down.weight]}]
        return AdaFisherW(groups, model=model)

    state = two().state_dict()
    state["param_groups"][1]["step"] = 5
    with pytest.raises(ValueError, match="its groups are at different steps: 0, 5"):
        two().load_state_dict(state)


@pytest.mark.parametrize(("one", "other"), [(AdaFisher, AdaFisherW), (AdaFisherW, AdaFisher)])
def test_the_two_optimizers_do_not_take_each_others_state(one, other):
    refused(saved(cls=one), f"saved by {one.name}, not by {other.name}", cls=other)


def test_a_state_from_before_the_name_was_in_it_loads():
    for cls in (AdaFisher, AdaFisherW):
        state = saved(cls=cls)
        for group in state["param_groups"]:
            del group["optimizer"]
        _, optimizer = trained(0, cls=cls)
        optimizer.load_state_dict(state)
        assert optimizer.param_groups[0]["optimizer"] == cls.name


# Options that may change

MAY_CHANGE = {
    "beta": (0.9, 0.5),
    "damping": (0.1, 0.4),
    "beta2": (0.95, 0.5),
    "gamma": (None, 0.5),
    "update_interval": (10, 3),
    "update_warmup": (100, 1),
    "token_stride": (1, 2),
    "kernel": ("auto", "plain"),
}


@pytest.mark.parametrize("name", MAY_CHANGE)
def test_an_option_that_the_state_is_not_made_of_may_change(name, caplog):
    """What is resumed with the new option goes on as if the run had had it from this step on."""
    old, new = MAY_CHANGE[name]
    model, optimizer = trained(6)
    resumed, other = trained(0, seed=5, **{name: new})
    resumed.load_state_dict(model.state_dict())
    with caplog.at_level(logging.INFO, logger="adafisher_hf"):
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"{name} from {'none' if old is None else old} to {new}" in line and line.count(" from ") == 1
    if name in optimizer.param_groups[0]:
        assert other.param_groups[0][name] == new
        optimizer.param_groups[0][name] = new
        train(model, optimizer, tiny_batches(3, seed=7))
        train(resumed, other, tiny_batches(3, seed=7))
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="adafisher_hf"):  # what is saved now has the new option
        other.load_state_dict(copy.deepcopy(other.state_dict()))
    assert not caplog.records


def test_what_changed_in_the_middle_of_a_run_is_part_of_the_state(caplog):
    model, optimizer = trained()
    optimizer.param_groups[0]["damping"] = 0.7
    train(model, optimizer, tiny_batches(1, seed=3))
    _, other = trained(0)
    with caplog.at_level(logging.INFO, logger="adafisher_hf"):
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["damping"] == 0.7 and not caplog.records


def test_a_group_of_its_own_option_keeps_it(caplog):
    def two(**change):
        model = tiny()
        groups = [{"params": [model.up.weight], "damping": 0.4}, {"params": [model.down.weight], **change}]
        return AdaFisherW(groups, model=model)

    with caplog.at_level(logging.INFO, logger="adafisher_hf"):
        same, other = two(), two(damping=0.2)
        same.load_state_dict(two().state_dict())
        assert not caplog.records
        other.load_state_dict(two().state_dict())
    assert [group["damping"] for group in same.param_groups] == [0.4, 0.1]
    assert [group["damping"] for group in other.param_groups] == [0.4, 0.2]
    assert "damping from 0.1 to 0.2" in caplog.text


MAY_NOT_CHANGE = {
    "mode": ({}, {"mode": "paper"}),
    "structure": ({}, {"structure": "kronecker"}),
    "second_moment": ({"structure": "kronecker"}, {"structure": "kronecker", "second_moment": "rotated"}),
    "max_factor_dim": ({"structure": "kronecker"}, {"structure": "kronecker", "max_factor_dim": 7}),
    "state_dtype": ({}, {"state_dtype": "bfloat16"}),
    "rounding": ({}, {"rounding": "nearest"}),
}


@pytest.mark.parametrize("name", MAY_NOT_CHANGE)
@pytest.mark.parametrize("turned", [False, True])
def test_an_option_that_the_state_is_made_of_may_not_change(name, turned):
    one, other = MAY_NOT_CHANGE[name][:: -1 if turned else 1]
    refused(saved(**one), f"saved with other options.* {name} is ", **other)


def test_an_option_without_effect_is_no_reason_to_refuse(caplog):
    """The first versions took one: ``max_factor_dim`` where no factor is dense."""
    state = saved()
    group = state["param_groups"][0]
    group["config"] = group["config"].replace(
        "max_factor_dim=1024,basis_interval=10", "max_factor_dim=7,basis_interval=3"
    )
    _, optimizer = trained(0)
    with caplog.at_level(logging.INFO, logger="adafisher_hf"):
        optimizer.load_state_dict(state)
    assert "max_factor_dim=1024" in optimizer.param_groups[0]["config"] and not caplog.records


def test_an_option_of_another_version_is_refused():
    refused(
        changed(lambda s: s["param_groups"][0].update(config=s["param_groups"][0]["config"] + ",warp=9")), "warp is 9"
    )


# The law


@pytest.mark.parametrize("structure", STRUCTURES)
def test_any_damage_is_refused_or_harmless(structure):
    """Seeded damage to a state: what loads also steps and stays finite, what is refused has changed nothing."""
    damage_and_load(structure, rounds=40)


@pytest.mark.slow
@pytest.mark.parametrize("structure", STRUCTURES)
def test_much_damage_is_refused_or_harmless(structure):
    damage_and_load(structure, rounds=500)


VALUES = (
    None, math.nan, math.inf, -1, 2, 10**400, "x", [], {}, True, 0.5, torch.tensor(math.nan), torch.zeros(0), 1e300,
    b"",
)  # fmt: skip


def damage_and_load(structure, rounds):
    chance, good = random.Random(structure), saved(**STRUCTURES[structure])
    model, optimizer = trained(2, **STRUCTURES[structure])
    outcomes = set()
    for _ in range(rounds):
        state = copy.deepcopy(good)
        damage(state, chance)
        before = frozen(optimizer)
        try:
            optimizer.load_state_dict(state)
        except (TypeError, ValueError) as error:
            outcomes.add("refused")
            assert_clear(error)
            assert_unchanged(optimizer, before)
        else:
            outcomes.add("loaded")
            fresh = tiny()
            model.load_state_dict(fresh.state_dict())
            train(model, optimizer, tiny_batches(1))
            tensors = [value for state in optimizer.state.values() for value in state.values()]
            assert all(torch.isfinite(x).all() for x in [*model.parameters(), *tensors])
            optimizer.load_state_dict(copy.deepcopy(good))
    assert "refused" in outcomes


def assert_clear(error):
    assert re.search("optimizer state|must be", str(error)), error


def damage(state, chance):
    """One random mistake: in a group, in a tensor, or in what holds them."""
    group, tensors = chance.choice(state["param_groups"]), state["state"][chance.choice(list(state["state"]))]
    place = chance.choice([group, tensors, state, state["state"]])
    key = chance.choice(list(place))
    how = chance.choice(["drop", "put", "shape", "dtype", "fill", "add"])
    value = place[key]
    if how == "drop":
        del place[key]
    elif how == "add":
        place["another"] = chance.choice(VALUES)
    elif how == "put" or not isinstance(value, torch.Tensor):
        place[key] = chance.choice(VALUES)
    elif how == "shape":
        place[key] = value[None]
    elif how == "dtype":
        place[key] = value.to(chance.choice([torch.float32, torch.int64, torch.complex64]))
    else:
        value.view(-1)[chance.randrange(value.numel())] = chance.choice([math.nan, math.inf, -math.inf])
