"""Schedules that cycle the momentum move β, and nothing else does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from adafisher_hf import AdaFisherW
from tests.models import next_token_loss, tiny, tiny_batches

STEPS = 8
SCHEDULES = {
    "one cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=1e-2, total_steps=STEPS + 1),
    "cyclic": lambda optimizer: CyclicLR(
        optimizer, base_lr=1e-3, max_lr=1e-2, step_size_up=3, base_momentum=0.6, max_momentum=0.95
    ),
}
every_schedule = pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)


def start(seed=0, groups=None, **knobs):
    model = tiny(seed)
    return model, AdaFisherW(groups(model) if groups else model.parameters(), model=model, **knobs)


def train(model, optimizer, schedule, batches):
    betas = []
    for ids in batches:
        optimizer.zero_grad()
        next_token_loss(model, ids).backward()
        optimizer.step()
        betas.append([group["beta"] for group in optimizer.param_groups])
        schedule.step()
    return betas


class ByHand:
    """Sets what a schedule of another optimizer has computed, under the optimizer's own names."""

    def __init__(self, optimizer, make):
        self.optimizer, self.other = optimizer, torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], momentum=0.9)
        self.schedule = make(self.other)
        self._set()

    def step(self):
        self.other.step()
        self.schedule.step()
        self._set()

    def _set(self):
        for group in self.optimizer.param_groups:
            group["lr"], group["beta"] = self.other.param_groups[0]["lr"], self.other.param_groups[0]["momentum"]


@every_schedule
def test_beta_follows_the_schedule(make):
    (model, optimizer), (other, by_hand) = start(), start()
    betas = train(model, optimizer, make(optimizer), tiny_batches(STEPS))
    expected = train(other, by_hand, ByHand(by_hand, make), tiny_batches(STEPS))
    assert betas == expected and len({beta for (beta,) in betas}) > 4
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@every_schedule
def test_a_cycle_resumes_in_the_middle_to_the_same_bits(make):
    (model, optimizer), (other, resumed) = start(), start(seed=5)
    schedule, again = make(optimizer), make(resumed)
    batches = tiny_batches(STEPS)
    train(model, optimizer, schedule, batches[:3])
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict(), schedule.state_dict()])
    for part, state in zip((other, resumed, again), saved, strict=True):
        part.load_state_dict(state)
    assert train(model, optimizer, schedule, batches[3:]) == train(other, resumed, again, batches[3:])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_without_a_cycle_there_is_one_name_for_beta():
    _, optimizer = start(beta=0.7)
    assert "momentum" not in optimizer.param_groups[0] and optimizer.param_groups[0]["beta"] == 0.7
    optimizer.param_groups[0]["beta"] = 0.5
    optimizer.step()
    assert optimizer.param_groups[0]["beta"] == 0.5
    assert "momentum" not in optimizer.state_dict()["param_groups"][0]


def test_a_group_that_joins_a_cycle():
    model, optimizer = start(groups=lambda model: [model.up.weight])
    optimizer.add_param_group({"params": [model.down.weight], "momentum": 0.3})
    assert [group["beta"] for group in optimizer.param_groups] == [0.9, 0.3]


def test_a_copy_goes_on_with_the_cycle():
    model, optimizer = start()
    schedule = SCHEDULES["one cycle"](optimizer)
    train(model, optimizer, schedule, tiny_batches(3))
    _, copied = copy.deepcopy((model, optimizer))
    assert copied.param_groups[0]["momentum"] == optimizer.param_groups[0]["momentum"] != 0.9


def test_another_beta_takes_the_cycle_away_that_is_not_there_any_more(caplog):
    _, optimizer = start()
    SCHEDULES["one cycle"](optimizer)
    _, resumed = start(beta=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.step()
    assert resumed.param_groups[0]["beta"] == 0.5


def test_a_cycle_out_of_range():
    model, optimizer = start()
    CyclicLR(optimizer, 1e-3, 1e-2, base_momentum=0.9, max_momentum=1.0)
    before = copy.deepcopy(model.state_dict())
    next_token_loss(model, tiny_batches(1)[0]).backward()
    with pytest.raises(ValueError, match="momentum, which a schedule of β sets: beta must be a number in .*got 1.0"):
        optimizer.step()
    assert not optimizer.state and all(torch.equal(before[name], p) for name, p in model.state_dict().items())
