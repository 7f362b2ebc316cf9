"""The numbers for the logs, against what the step has really done."""

from __future__ import annotations

import math

import pytest
import torch

from adafisher_hf import AdaFisherW
from tests.models import next_token_loss, tiny, tiny_batches


@pytest.mark.parametrize(
    "knobs",
    [{}, {"structure": "kronecker"}, {"mode": "paper", "lr": 1e-5}, {"mode": "reference", "lr": 1e-5}],
    ids=["diagonal", "kronecker", "paper", "reference"],
)
def test_update_is_that_of_the_last_step_whatever_the_schedule_does_next(knobs):
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model, **{"lr": 1e-2, **knobs})
    names = [name for name, _ in model.named_parameters()]
    for batch in tiny_batches(3):
        before = [p.detach().clone() for p in model.parameters()]
        next_token_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {n: (p - old).norm().item() for n, p, old in zip(names, model.parameters(), before, strict=True)}
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    rows = {row.name: row for row in optimizer.summary_rows()}
    assert rows.keys() == moved.keys()
    for name, row in rows.items():
        assert row.update == pytest.approx(moved[name], rel=1e-6)


@pytest.mark.parametrize(
    "knobs", [{}, {"structure": "kronecker", "second_moment": "rotated"}], ids=["diagonal", "rotated"]
)
def test_log_spread_and_weight(knobs):
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model, lr=1e-2, **knobs)
    next_token_loss(model, tiny_batches(1)[0]).backward()
    optimizer.step()
    parameters = dict(model.named_parameters())
    for row in optimizer.summary_rows():
        parameter = parameters[row.name]
        assert row.weight == pytest.approx(parameter.norm().item())
        spread = optimizer.curvature(parameter).log10().std(correction=0).item()
        assert row.log_spread == pytest.approx(spread, rel=1e-9)


def test_a_mean_is_not_known_between_a_resume_and_the_next_refresh():
    def step(optimizer, batch):
        next_token_loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    model = tiny()
    knobs = {"lr": 1e-2, "update_interval": 3, "update_warmup": 0}
    optimizer = AdaFisherW(model.parameters(), model=model, **knobs)
    first, *batches = tiny_batches(4)
    step(optimizer, first)
    resumed = AdaFisherW(model.parameters(), model=model, **knobs)
    resumed.load_state_dict(optimizer.state_dict())
    optimizer.close()
    for batch in batches:
        step(resumed, batch)
        refreshed = batch is batches[-1]
        assert all(math.isnan(row.mean) != refreshed for row in resumed.summary_rows())
        assert all(("mean" in row) == refreshed for row in resumed.summary().values())


def test_no_step_no_rows():
    model = tiny()
    assert AdaFisherW(model.parameters(), model=model).summary() == {}
    assert torch.isfinite(model.head.weight).all()
