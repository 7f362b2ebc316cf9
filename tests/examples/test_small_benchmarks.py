"""Benchmarks of one question each: what they compare, and that their numbers are what they say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adafisher_hf import AdaFisherW
from adafisher_hf.preconditioners import pair
from benchmarks import fisher_estimators, matrix_products, memory, pair_start
from benchmarks.harness.finetuners import BASELINE, FACTORS
from benchmarks.harness.runner import Run
from benchmarks.harness.tasks import TASKS
from lora import LoraArguments, with_adapters
from tests.models import llama


def test_starts_of_a_pair_differ_in_its_damping_alone(monkeypatch):
    arms = {arm.name: arm for arm in pair_start.arms(TASKS["digits-lora"])}
    assert list(arms)[:2] == [BASELINE, FACTORS] and len(arms) == 2 + len(pair_start.STARTS)
    monkeypatch.setattr(pair, "LEAST", pair.LEAST)  # put back what the arm changes
    optimizer = arms["pair, ε 0.05, at least of 1"].build(with_adapters(llama(), LoraArguments(lora_r=2)), 1e-3)
    assert (optimizer.config.pair_damping, optimizer.config.lora, pair.LEAST) == (0.05, "pair", 1.0)


def test_table_of_starts_has_the_best_rate_and_the_worst_seed():
    def runs(*losses):
        return [Run([], loss, 1.0, 4.0) for loss in losses]

    found = {
        ("AdamW", 1e-3): runs(1.0, 1.2),
        ("AdamW", 3e-3): runs(2.0, 2.0),
        ("pair", 1e-3): runs(3.0, 3.0),
        ("pair", 3e-3): runs(0.8, 1.2),
    }
    table = pair_start.table(found, [1e-3, 3e-3])
    assert "| pair | 3.000 ± 0.000 | 1.000 ± 0.200 | 1.200 | -0.100 ± 0.100 |" in table


@pytest.mark.parametrize("start", [(-2.0, 1.0), (0.4, -2.0)])
def test_the_improved_fisher_goes_straight_where_the_empirical_one_does_not(start):
    theta = torch.tensor(start, dtype=torch.float64)
    ends = {name: fisher_estimators.trajectory(name, theta)[-1].norm() for name in ("improved", "empirical")}
    assert ends["improved"] < 0.1 < 1.0 < ends["empirical"]
    way = fisher_estimators.trajectory("improved", theta)
    off = way - (way @ theta)[:, None] * theta / theta.square().sum()
    assert off.norm(dim=-1).max() < 0.01


def test_no_direction_has_a_smaller_gamma_than_the_natural_gradient():
    torch.manual_seed(0)
    batch = {"pixel_values": torch.randn(6, 5), "labels": torch.tensor([0, 1, 2, 0, 1, 2])}

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 3)

        def forward(self, pixel_values, labels=None):
            logits = self.linear(pixel_values)
            loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
            return type("Output", (), {"logits": logits, "loss": loss})

    local = fisher_estimators.LocalModel(Classifier(), batch)
    best = local.gamma(local.natural())
    assert local.gamma(2.5 * local.natural()) == pytest.approx(best, rel=1e-9)
    steps = [-local.gradient, *(torch.randn_like(local.gradient) for _ in range(20))]
    assert all(local.gamma(step) >= best * 0.999 for step in steps)


def test_products_are_those_of_the_iteration():
    """Five steps of m²n, m³ and m²n products with every m × n matrix; and tables into their basis and back."""
    model = llama().to("meta")
    hidden, tables = matrix_products.step_operations(model)
    optimizer = AdaFisherW(model, structure="orthogonal")
    sides = [sorted(row.shape) for row in optimizer.coverage_rows() if row.role == "hidden"]
    assert hidden == sum(5 * 2 * (2 * m * m * n + m**3) for m, n in sides) > 0
    rows = [row.shape for row in optimizer.coverage_rows() if row.role == "vocabulary"]
    assert tables == sum(2 * 2 * vocabulary * width**2 for vocabulary, width in rows) > 0


def test_settings_of_the_memory_table_can_be_made():
    for options in memory.SETTINGS.values():
        memory._optimizer(llama(), options)
