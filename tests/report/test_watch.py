"""--watch: a page again and again, with the time that is left, until the run has ended."""

import json
import time

import pytest
from transformers import Trainer, TrainerCallback
from transformers.modelcard import parse_log_history

from adafisher_hf import CurvatureCallback
from adafisher_hf.cli import main
from adafisher_hf.report import watch
from adafisher_hf.report.folders import read_runs
from adafisher_hf.report.progress import finished, seconds_left
from tests.integrations.test_trainer import arguments, data
from tests.models import llama
from tests.report.runs import write_run


def state(*entries, most=40):
    return json.dumps({"global_step": entries[-1]["step"], "max_steps": most, "log_history": entries})


ONE = {"step": 10, "loss": 2.0, "seconds": 30.0}
TWO = {"step": 20, "loss": 1.0, "seconds": 60.0}
END = {"step": 40, "train_runtime": 120.0, "seconds": 120.0}


def test_time_left_is_at_the_pace_so_far(tmp_path):
    (run,) = read_runs([write_run(tmp_path, state=state(ONE, TWO))])
    assert not finished(run) and seconds_left(run) == pytest.approx(20 * 3.0)
    (run,) = read_runs([write_run(tmp_path, state=state(ONE, TWO, END))])
    assert finished(run) and seconds_left(run) is None
    (run,) = read_runs([write_run(tmp_path)])  # no times
    assert not finished(run) and seconds_left(run) is None


def test_pages_are_written_until_the_run_has_ended(tmp_path, monkeypatch):
    folder, pages, said = write_run(tmp_path, state=state(ONE)), [], []
    later = iter([state(ONE, TWO), state(ONE, TWO, END)])

    def sleep(seconds):
        assert seconds == 7
        pages.append((folder / "report.html").read_text())
        write_run(folder, state=next(later))

    monkeypatch.setattr(time, "sleep", sleep)
    watch([folder], None, 7, say=said.append)
    label = folder.name
    assert said == [f"{label}: step 10 of 40, about 1 min 30 s left", f"{label}: step 20 of 40, about 1 min 0 s left"]
    assert all('data-every="7"' in page and line in page for page, line in zip(pages, said, strict=True))
    assert "data-every" not in (folder / "report.html").read_text().partition("<script")[0]
    assert (folder / "report/loss.png").exists()


def test_ctrl_c_ends_it_with_a_whole_report(tmp_path, monkeypatch, capsys):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    folder = write_run(tmp_path, state=state(ONE))
    assert main(["report", str(folder), "--watch", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{folder / 'report.html'}\n" and "step 10 of 40" in captured.err
    assert (folder / "report/loss.png").exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon"])
def test_no_time_between_pages(tmp_path, seconds):
    with pytest.raises(SystemExit) as caught:
        main(["report", str(tmp_path), f"--watch={seconds}"])
    assert caught.value.code == 2


@pytest.mark.parametrize("optim", ["adafisherw", "adamw_torch"])
def test_a_run_that_goes_on_can_be_read(tmp_path, optim):
    seen = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(read_runs([tmp_path])[0])

    options = {"logging_steps": 1, "optim": optim, "optim_args": None}
    Trainer(
        llama(), arguments(tmp_path, **options), train_dataset=data(), callbacks=[CurvatureCallback(), Look()]
    ).train()
    assert all(run.optimizer == ("AdamW" if optim == "adamw_torch" else optim) for run in seen)
    assert seen[0].history == [] and not any(map(finished, seen))
    (run,) = read_runs([tmp_path])
    assert finished(run) and run.times == "logged" and run.notes == []
    times = [seconds for seconds, _ in run.points("loss", by="seconds")]
    assert len(times) == 4 and times == sorted(times) and times[0] > 0


def test_times_are_no_metric_of_the_model_card(tmp_path):
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=1, logging_steps=2)
    trainer = Trainer(llama(), args, train_dataset=data(), eval_dataset=data(4), callbacks=[CurvatureCallback()])
    trainer.train()
    _, lines, results = parse_log_history(trainer.state.log_history)
    assert {key for line in [*lines, results] for key in line} <= {
        "Training Loss", "Epoch", "Step", "Validation Loss", "Loss", "Model Preparation Time"
    }  # fmt: skip
    (run,) = read_runs([tmp_path])
    times = dict(run.points("loss", by="seconds"))
    assert len(run.points("eval_loss", by="seconds")) == 3  # not that of step 1, before anything was timed
    assert all(seconds > min(times) for seconds, _ in run.points("eval_loss", by="seconds"))


def test_an_evaluation_ends_after_its_step_and_its_own_time(tmp_path):
    log = [
        ONE,
        {"step": 10, "eval_loss": 2.5, "eval_runtime": 4.0},
        {"step": 15, "eval_loss": 2.4, "eval_runtime": 4.0},
    ]
    (run,) = read_runs([write_run(tmp_path, state=state(*log))])
    assert run.points("eval_loss", by="seconds") == [(34.0, 2.5), (49.0, 2.4)]


def test_a_resumed_run_goes_on_counting(tmp_path):
    args = arguments(tmp_path, logging_steps=1, save_strategy="steps", save_steps=2, max_steps=2)
    Trainer(llama(), args, train_dataset=data(), callbacks=[CurvatureCallback()]).train()
    file = tmp_path / "checkpoint-2/trainer_state.json"
    content = json.loads(file.read_text())
    content["log_history"][-1]["seconds"] = 1000.0
    file.write_text(json.dumps(content))
    args = arguments(tmp_path, logging_steps=1, save_strategy="steps", save_steps=2, max_steps=4)
    resumed = Trainer(llama(), args, train_dataset=data(), callbacks=[CurvatureCallback()])
    resumed.train(resume_from_checkpoint=True)
    (run,) = read_runs([tmp_path])
    assert [1000 < seconds < 1100 for seconds, _ in run.points("loss", by="seconds")] == [False, False, True, True]
