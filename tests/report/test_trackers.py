"""Runs from what trackers keep: TensorBoard's event files, and W&B's exported history."""

import csv
import json

import pytest
from transformers import Trainer
from transformers.integrations.integration_utils import rewrite_logs

from adafisher_hf import CurvatureCallback
from adafisher_hf.report import tensorboard
from adafisher_hf.report.folders import read_runs
from adafisher_hf.report.page import NO_KINDS, render
from tests.integrations.test_trainer import arguments, data
from tests.models import llama
from tests.report.runs import write_run

tb = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed: pip install tensorboard")

LOGS = (
    (10, {"loss": 3.0, "learning_rate": 0.1, "adamqlr/lr": 0.5}),
    (20, {"loss": 2.0, "learning_rate": 0.2, "adamqlr/lr": 0.25}),
    (20, {"eval_loss": 2.5}),
)


def read(path):
    return read_runs([path])[0]


def events(folder, logs, start, args=None):
    """What the Trainer's callback writes, ten seconds from one log to the next."""
    writer = tb.SummaryWriter(str(folder))
    if args:
        writer.add_text("args", json.dumps(args), walltime=start)
    for i, (step, entry) in enumerate(logs, 1):
        for tag, value in rewrite_logs(entry).items():
            writer.add_scalar(tag, value, step, walltime=start + 10 * i)
    writer.close()


def test_a_run_that_only_tensorboard_saw_is_that_of_the_trainer(tmp_path):
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=2, logging_steps=1, report_to=["tensorboard"])
    trainer = Trainer(llama(), args, train_dataset=data(), eval_dataset=data(4), callbacks=[CurvatureCallback()])
    trainer.train()
    whole = read(tmp_path)
    for name in ("trainer_state.json", "curvature.jsonl", "coverage.json", "adafisher_config.json"):
        (tmp_path / name).unlink()
    run = read(tmp_path)
    assert run.times == "logged" and run.optimizer.startswith("adafisherw update_interval")
    assert run.state == {"global_step": 4, "max_steps": 4}
    for key in ("loss", "eval_loss", "learning_rate", "train_runtime"):
        assert run.points(key) == [(step, pytest.approx(value, rel=1e-6)) for step, value in whole.points(key)]
    for name in whole.parameters():
        for figure in ("mean", "log_spread", "update_ratio"):
            assert run.layer(name, figure) == pytest.approx(whole.layer(name, figure), rel=1e-4, nan_ok=True)
    assert NO_KINDS in render([run])[0]


def test_a_resumed_run_counts_from_where_it_was_resumed(tmp_path, monkeypatch):
    first, later = tmp_path / "runs/a", tmp_path / "runs/b"
    events(first, [(10, {"loss": 3.0}), (20, {"loss": 9.0}), (30, {"loss": 9.0})], start=1000.0)
    events(later, [(20, {"loss": 2.0}), (30, {"loss": 1.0})], start=9000.0)
    begins = {first: 1000.0, later: 9000.0}  # the writer puts the time of now there
    monkeypatch.setattr(tensorboard, "_begin", lambda session: begins[type(tmp_path)(session.path).parent])
    run = read(tmp_path)
    assert run.points("loss") == [(10, 3.0), (20, 2.0), (30, 1.0)]
    assert run.points("loss", by="seconds") == [(10.0, 3.0), (20.0, 2.0), (40.0, 1.0)]


def test_times_of_tensorboard_serve_a_log_of_the_trainer_that_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "_begin", lambda session: 1000.0)
    events(tmp_path / "runs/a", [(step, {"loss": 0.0}) for step in (10, 20, 30)], start=1000.0)
    run = read(write_run(tmp_path))
    assert run.points("loss", by="seconds") == [(10.0, 7.0), (20.0, 6.0), (30.0, 5.0)]
    assert run.times == "logged" and run.notes == []


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl"])
def test_an_export_of_wandb(tmp_path, ending):
    rows = [
        {"_step": i, "_runtime": 5.0 * i, "train/global_step": step, **rewrite_logs(entry)}
        for i, (step, entry) in enumerate(LOGS, 1)
    ]
    file = tmp_path / f"history.{ending}"
    if ending == "csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, dict.fromkeys(key for row in rows for key in row))
            writer.writeheader()
            writer.writerows(rows)
    else:
        file.write_text(json.dumps(rows) if ending == "json" else "\n".join(map(json.dumps, rows)))
    run = read(file)
    assert run.points("loss", by="seconds") == [(5.0, 3.0), (10.0, 2.0)]
    assert run.points("eval_loss") == [(20, 2.5)] and run.points("adamqlr/lr") == [(10, 0.5), (20, 0.25)]
    assert run.notes == [] and run.state["global_step"] == 20


@pytest.mark.parametrize("content", ["", "[1, 2", "a,b\n1,2\n", '{"x": 1}', "[" * 10**5, b"\xff\xfe"])
@pytest.mark.parametrize("ending", ["csv", "json", "jsonl"])
def test_what_is_no_export_of_wandb_is_a_note(tmp_path, ending, content):
    file = tmp_path / f"history.{ending}"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    (note,) = read(file).notes
    assert "is no history of W&B" in note


def test_an_offline_run_of_wandb_is_named(tmp_path):
    folder = tmp_path / "wandb/offline-run-1-a"
    folder.mkdir(parents=True)
    (folder / "run-a.wandb").write_bytes(b":W&B")
    assert any("wandb sync" in note for note in read(tmp_path).notes)
