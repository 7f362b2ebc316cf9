"""The fine-tuning benchmark: splits that share nothing, scores against hand-made ones, a fair table."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch import nn

from benchmarks import finetune
from benchmarks.harness import finetuning, tasks
from benchmarks.harness.arms import WEIGHT_DECAY, Point, loraplus, lorarite
from benchmarks.harness.finetuners import BASELINE, LORA_ARMS
from benchmarks.harness.finetuning import FineTuning
from benchmarks.harness.jobs import TUNING_SEED
from benchmarks.harness.journal import Journal
from benchmarks.harness.materials.material import Material, with_tuning
from benchmarks.harness.materials.vision import digits
from benchmarks.harness.report import cost_table, overall_table, quality_table, tuning_table
from benchmarks.harness.runner import Run
from benchmarks.harness.scoring import Tally, calibration_error
from benchmarks.harness.standing import Standing
from benchmarks.harness.tasks import TASKS, Task
from benchmarks.harness.timing import Timing
from data.digits import load_digits
from data.headlines import load_headlines
from data.limits import LimitArguments
from data.topics import load_topics
from errors import InputError
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
    splits = with_tuning(train, evaluation)
    rows = {name: {str(row) for row in split.with_format(None)[column]} for name, split in splits.items()}
    assert sum(map(len, rows.values())) == len(set.union(*rows.values()))
    assert rows["eval"] == {str(row) for row in evaluation.with_format(None)[column]}
    assert len(splits["tune"]) == pytest.approx(len(train) / 10, abs=1)


def test_batches_and_models_follow_the_seed():
    problem = FineTuning("digits", digits, 64)
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


def test_lorarite_gets_the_factors_in_pairs_and_adamw_the_rest():
    model = with_adapters(llama(), LoraArguments(lora_r=2))
    model.get_output_embeddings().weight.requires_grad_(True)
    optimizer = lorarite([], model, lr=1e-3)
    factors, others = (part.param_groups[0]["params"] for part in optimizer.parts)
    assert all(a.shape[0] == b.shape[1] == 2 for a, b in zip(factors[::2], factors[1::2], strict=True))
    assert len(factors) == 28 and [id(p) for p in others] == [id(model.get_output_embeddings().weight)]
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizer.parts[0].param_groups[0]["lr"] == 0.5
    before = [parameter.detach().clone() for parameter in (*factors, *others)]
    model(input_ids=torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    optimizer.step()
    # B starts at zero, so A has no gradient yet.
    moved = [not torch.equal(*pair) for pair in zip(before, (*factors, *others), strict=True)]
    assert all(moved[1:28:2]) and moved[-1]


def test_confidence_that_is_right_on_average_has_no_error():
    right = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert calibration_error(torch.full((4,), 0.75), right) == pytest.approx(0)
    assert calibration_error(torch.full((4,), 0.95), right) == pytest.approx(0.2)
    assert calibration_error(torch.tensor([1.0, 1.0, 0.0, 0.0]), right) == pytest.approx(0.25)


def test_classes_have_an_f1_and_texts_an_exact_match():
    classes, texts = Tally(), Tally()
    classes.add(torch.eye(3)[[0, 0, 1, 2]], torch.tensor([0, 1, 1, 1]), 1.0)
    assert classes.scores().f1 == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert classes.scores().exact is None
    texts.add(torch.eye(3)[torch.tensor([[0, 1], [2, 2]])], torch.tensor([[0, IGNORED], [2, 1]]), 2.0)
    texts.add(torch.eye(3)[torch.tensor([[1]])], torch.tensor([[1]]), 0.5)
    scores = texts.scores()
    assert (scores.exact, scores.accuracy, scores.f1) == (2 / 3, 3 / 4, None)
    assert scores.loss == pytest.approx((3 * 2.0 + 0.5) / 4)


def standing(*losses: float, lr: float = 1e-3, seconds: float = 1.0) -> Standing:
    runs = [Run([(1, loss)], loss, 1.0, 4.0, accuracy=1 - loss / 10, calibration=loss / 100) for loss in losses]
    tried = {Point(lr, None, 1.0): losses[0], Point(3 * lr, None, 1.0): float("inf")}
    return Standing(tried, runs, {BASELINE: 40}, Timing([seconds] * 3, 30))


def test_tables_compare_seed_by_seed():
    standings = {BASELINE: standing(1.0, 2.0), "other": standing(0.5, 1.4, lr=3e-3, seconds=1.5)}
    task = Task("a task", of_rows([]), 100, LORA_ARMS)
    quality, cost = quality_table(task, standings, BASELINE), cost_table(task, standings, BASELINE)
    assert "| other | 3e-3 | 0.950 ± 0.450 | -0.550 ± 0.050 * | 90.5 ± 4.5 |" in quality
    assert "| other | 0.9 ± 0.4 | 40 (× 0.40, time × 0.60) | × 1.50 | 4.00 |" in cost
    assert "| AdamW | 1.000 | diverged |" in tuning_table({"AdamW": standing(1.0)}).replace("  ", " ")


def test_the_table_over_tasks_ranks_and_counts():
    ahead, level = standing(0.5, 1.5), standing(0.0, 4.0)
    task = Task("a task", of_rows([]), 100, LORA_ARMS)
    first = {BASELINE: standing(1.0, 2.0001), "ahead": ahead, "level": level}
    second = {BASELINE: standing(0.1, 1.0), "ahead": ahead}
    table = overall_table({"first": (task, first), "second": (task, second)}, BASELINE)
    assert "| ahead | 1.5 | 1 of 2 | 1 of 2 | -0.025 |" in table
    assert "| level | 3.0 | 0 of 1 | 0 of 1 | +0.500 |" in table


def test_finished_runs_are_not_made_again(tmp_path, monkeypatch):
    rows = [{"input_ids": [number, 2], "labels": [number, 3]} for number in range(4)]
    task = Task("numbers", of_rows(rows), 4, tasks.finetuners.FULL_ARMS)
    monkeypatch.setitem(TASKS, "digits", task)
    command = ["--tasks", "digits", "--arms", "AdamW", "Adafactor", "--seeds", "2", "--out", str(tmp_path)]
    finetune.main(command)
    table = (tmp_path / "table.md").read_text()
    monkeypatch.setattr("benchmarks.harness.jobs.train", lambda *args, **kwargs: pytest.fail("made again"))
    finetune.main(command)
    assert (tmp_path / "table.md").read_text() == table
    settings = [entry["setting"] for entry in Journal(tmp_path / "digits" / "runs.json")._entries]
    assert {setting["split"] for setting in settings} == {"tune", "eval"}
    assert all((setting["seed"] == TUNING_SEED) == (setting["split"] == "tune") for setting in settings)
    assert "### Whole models: 1 tasks" in table


def test_an_arm_that_no_task_has(tmp_path):
    with pytest.raises(InputError, match="no task has Addam"):
        finetune.main(["--tasks", "digits", "--arms", "Addam", "--out", str(tmp_path)])


def test_every_task_says_what_counts():
    assert {name for name, task in TASKS.items() if task.adapters} == {name for name in TASKS if name.endswith("lora")}
    for task in TASKS.values():
        assert task.arms[0].name == BASELINE and task.steps >= 200
    names = {task.problem.name for task in TASKS.values()}
    assert {"sentences", "tweets", "topics", "phonemes", "verses", "news", "mnist"} <= names
