"""What a Trainer tells the recorder, in this process and in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from adafisher_hf.compare.record import read_record
from adafisher_hf.compare.recorder import Recorder
from tests.models import llama

SCRIPT = Path(__file__).with_name("script.py")
PAUSE = 0.2


class SlowEvaluation(TrainerCallback):
    """Sleeps in every evaluation, and once in a step."""

    def on_prediction_step(self, args, state, control, **kwargs):
        time.sleep(PAUSE)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            time.sleep(PAUSE)


@pytest.fixture
def trainer(tmp_path):
    rows = torch.randint(3, 64, (8, 8))
    data = [{"input_ids": row, "labels": row} for row in rows]

    def make(*callbacks: TrainerCallback, model=None, **options) -> Trainer:
        args = TrainingArguments(
            str(tmp_path / "out"), use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
            eval_strategy="steps", eval_steps=2, max_steps=6, per_device_train_batch_size=4, **options,
        )  # fmt: skip
        parts = dict(train_dataset=data, eval_dataset=data[:4], callbacks=[Recorder(tmp_path), *callbacks])
        return Trainer(model or llama(), args, **parts)

    return make


def test_evaluations_steps_and_the_optimizers_state(trainer, tmp_path):
    made = trainer(optim="adafisherw")
    made.train()
    final = made.evaluate()
    record = read_record(tmp_path)
    history = [entry for entry in made.state.log_history if "eval_loss" in entry]
    assert [(p.step, p.value) for p in record.curve("eval_loss")] == [(e["step"], e["eval_loss"]) for e in history[:3]]
    assert record.last("eval_loss") == final["eval_loss"] and record.steps == 6
    state = made.optimizer.state_dict()["state"]
    assert record.state_bytes == sum(
        t.nbytes for s in state.values() for t in s.values() if isinstance(t, torch.Tensor)
    )
    assert record.trained == made.model.num_parameters()
    kept = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert [entry for entry in kept if "eval_loss" in entry] == history


def test_predictions_are_kept_under_their_prefix(trainer, tmp_path):
    made = trainer()
    made.train()
    predicted = made.predict(made.eval_dataset, metric_key_prefix="test").metrics
    assert read_record(tmp_path).last("test_loss") == predicted["test_loss"]


def test_the_clock_stands_still_in_evaluations(trainer, tmp_path):
    trainer(SlowEvaluation(), eval_on_start=True).train()
    record = read_record(tmp_path)
    times = [point.seconds for point in record.curve("eval_loss")]
    assert times[0] == 0.0 and times == sorted(times)
    assert times[-1] == record.seconds
    assert PAUSE < record.seconds < 2 * PAUSE, "one pause was in a step, five were in evaluations"
    assert times[2] - times[1] > PAUSE, "in the fourth step"


def test_frozen_parameters_are_not_counted(trainer, tmp_path):
    model = llama()
    model.model.embed_tokens.requires_grad_(False)
    trainer(model=model).train()
    assert read_record(tmp_path).trained == model.num_parameters(only_trainable=True)


def test_without_a_training_there_is_no_record(trainer, tmp_path):
    trainer().evaluate()
    assert read_record(tmp_path) is None


def test_of_two_trainings_the_last_counts(trainer, tmp_path):
    made = trainer()
    made.train()
    made.args.max_steps = 4
    made.train()
    assert [point.step for point in read_record(tmp_path).curve("eval_loss")] == [2, 4]


def test_a_script_in_its_own_process_is_recorded_and_knows_the_optimizers(tmp_path):
    args = ["--optim", "adafisherw", "--max_steps", "2", "--eval_strategy", "steps", "--eval_steps", "1"]
    command = [sys.executable, "-m", "adafisher_hf.cli.recorded", tmp_path, SCRIPT, *args]
    subprocess.run([*command, "--output_dir", tmp_path / "output", "--use_cpu"], check=True, capture_output=True)
    record = read_record(tmp_path)
    assert [point.step for point in record.curve("eval_loss")] == [1, 2] and record.last("test_loss") is not None
    assert 4 < record.state_bytes / record.trained < 8, "less than AdamW's"
