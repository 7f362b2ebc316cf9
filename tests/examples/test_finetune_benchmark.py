"""The fine-tuning benchmark: splits that share nothing, scores against hand-made ones, a fair table."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch import nn

from benchmarks import finetune
from benchmarks.finetune import ARMS, TASKS, TUNING_SEED, Benchmark, Task, describe, draw
from benchmarks.harness import finetuning
from benchmarks.harness.arms import WEIGHT_DECAY, loraplus
from benchmarks.harness.finetuning import FineTuning, Material, _with_tuning
from benchmarks.harness.journal import Journal
from benchmarks.harness.report import Result, finetuning_table
from benchmarks.harness.runner import Run
from benchmarks.harness.timing import Timing
from data.digits import load_digits
from data.headlines import load_headlines
from data.limits import LimitArguments
from data.topics import load_topics
from lora import LoraArguments, with_adapters
from metrics.token_accuracy import IGNORED
from tests.models import llama


class Successor(nn.Module):
    """Says that after t comes t + 1; its loss is a constant."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, labels):
        logits = nn.functional.one_hot((input_ids + 1) % 10, 10).float() + self.weight
        return SimpleNamespace(logits=logits, loss=input_ids.float().mean() + self.weight.sum())


def of_rows(rows: list[dict], **more) -> FineTuning:
    def collate(some):
        return {name: torch.tensor([row[name] for row in some]) for name in some[0]}

    table = Dataset.from_list(rows)
    material = Material({"train": table, "tune": table, "eval": table}, collate, Successor)
    return FineTuning("successor", lambda: material, 2, **more)


def test_next_token_is_compared_with_the_one_that_follows():
    rows = [{"input_ids": [1, 2, 3, 9], "labels": [1, 2, 3, 9]}, {"input_ids": [4, 5, 0, 1], "labels": [4, 5, 0, 1]}]
    problem = of_rows(rows, next_token=True)
    assert problem.evaluate(problem.model(0), "eval").accuracy == 4 / 6
    assert of_rows(rows).evaluate(problem.model(0), "eval").accuracy == 0


def test_targets_count_equally_whatever_batch_they_are_in(monkeypatch):
    monkeypatch.setattr(finetuning, "EVALUATION_BATCH", 1)
    rows = [{"input_ids": [1, 1, 1], "labels": [2, 2, 2]}, {"input_ids": [5, 5, 5], "labels": [6, IGNORED, IGNORED]}]
    scores = of_rows(rows).evaluate(Successor(), "tune")
    assert scores.loss == pytest.approx((3 * 1 + 1 * 5) / 4)
    assert scores.accuracy == 1.0


@pytest.mark.parametrize(
    ("load", "column"), [(load_digits, "pixel_values"), (load_headlines, "body"), (load_topics, "text")]
)
def test_splits_share_no_row(load, column):
    train, evaluation = load(LimitArguments())
    splits = _with_tuning(train, evaluation)
    rows = {name: {str(row) for row in split.with_format(None)[column]} for name, split in splits.items()}
    assert sum(map(len, rows.values())) == len(set.union(*rows.values()))
    assert rows["eval"] == {str(row) for row in evaluation.with_format(None)[column]}
    assert len(splits["tune"]) == pytest.approx(len(train) / 10, abs=1)


def test_batches_and_models_follow_the_seed():
    problem = TASKS["digits"].problem
    first, again, other = (next(problem.batches(seed))["labels"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    weights = [next(problem.model(seed).parameters()) for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert problem.model(1).training


def test_loraplus_is_faster_for_b():
    optimizer = loraplus([], with_adapters(llama(), LoraArguments(lora_r=2)), lr=1e-3, ratio=16.0)
    rates = {group["lr"]: len(group["params"]) for group in optimizer.param_groups if group["params"]}
    assert rates == {1e-3: 14, 16e-3: 14}
    assert {group["weight_decay"] for group in optimizer.param_groups if group["params"]} == {WEIGHT_DECAY}


def result(lr: float, *losses: float, seconds: float = 1.0) -> Result:
    finals = [Run([(1, loss)], loss, 1.0, 4.0, accuracy=1 - loss / 10) for loss in losses]
    return Result({lr / 3: 3.0, lr: 1.0, 3 * lr: 1.04}, finals, timing=Timing([seconds], 10))


def test_table_compares_seed_by_seed():
    table = finetuning_table(
        {"AdamW": result(1e-3, 1.0, 2.0), "other": result(3e-3, 1.5, 1.9, seconds=1.5)}, "AdamW", 10, 0.05
    )
    assert "| AdamW | 1e-3 | 1e-3 – 3e-3 | 1.500 ± 0.500 | 85.0 ± 5.0 |  | × 1.00 | 4.00 |" in table
    assert "| other | 3e-3 | 3e-3 – 9e-3 | 1.700 ± 0.200 | 83.0 ± 2.0 | 1 of 2 | × 1.50 | 4.00 |" in table


def test_finished_runs_are_not_made_again(tmp_path, monkeypatch):
    rows = [{"input_ids": [number, 2], "labels": [number, 3]} for number in range(4)]
    task = Task("numbers", of_rows(rows), steps=4, grid=(1e-3, 1e-2), close=0.1, timed=10, arms=ARMS[:2])

    def measure():
        return Benchmark(task, 2, tmp_path).measure()

    first = describe(task, measure())
    monkeypatch.setattr(finetune, "train", lambda *args, **kwargs: pytest.fail("a finished run was made again"))
    assert describe(task, measure()) == first
    settings = [entry["setting"] for entry in Journal(tmp_path / "runs.json")._entries]
    assert len(settings) == 2 * (2 + 2)
    assert all((setting["seed"] == TUNING_SEED) == (setting["split"] == "tune") for setting in settings)


def test_diverged_rate_leaves_the_picture_readable(tmp_path):
    results = {"AdamW": Result({1e-3: 1.0, 1e-2: math.inf}), "other": Result({1e-3: 2.0, 1e-2: 1.5})}
    picture = draw({"digits": results, "lora": results}, tmp_path)
    assert picture.stat().st_size > 10_000
