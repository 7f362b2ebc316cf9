"""The lines of a run on the console are short, and nothing is lost where figures are kept."""

import json
import re

import pytest
from transformers import PrinterCallback, TrainerCallback

from adafisher_hf import AdaFisherTrainer
from console import WIDTH, ShortPrinter, ShortProgress, line
from tests.integrations.test_trainer import FIGURES, arguments, data
from tests.models import llama
from training import train_and_evaluate

KINDS = {f"curvature/kind {i}/{figure}": 1.2345e-7 for i in range(9) for figure in ("mean", "log_spread")}


@pytest.mark.parametrize("disable_tqdm", [False, True])
def test_lines_are_short_and_the_history_is_whole(tmp_path, capsys, disable_tqdm):
    args = arguments(
        tmp_path, disable_tqdm=disable_tqdm, logging_steps=1, eval_strategy="steps", eval_steps=2, do_train=True
    )
    trainer = AdaFisherTrainer(llama(), args, train_dataset=data(), eval_dataset=data(4))
    train_and_evaluate(trainer)
    out = capsys.readouterr().out
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    losses = [log for log in history if "loss" in log]
    assert max(map(len, out.splitlines())) <= WIDTH and "{" not in out
    shown = [text for text in out.splitlines() if "  loss " in text]
    for text, log in zip(shown, losses, strict=True):
        assert text.startswith(f"{log['step']}/{args.max_steps}  loss {log['loss']:.4g}  grad {log['grad_norm']:.4g}")
        assert f"norm {log['curvature/norm/mean']:.2g}" in text
        assert {f"curvature/norm/{figure}" for figure in FIGURES} <= log.keys()
    assert f"{args.max_steps}/{args.max_steps}  eval_loss " in out


def test_what_shows_logs_in_another_way_stays(tmp_path, capsys):
    class Table(TrainerCallback):
        """As a notebook's."""

    trainer = AdaFisherTrainer(llama(), arguments(tmp_path, do_train=True), train_dataset=data(), callbacks=[Table])
    trainer.remove_callback(PrinterCallback)
    train_and_evaluate(trainer)
    kinds = {type(callback) for callback in trainer.callback_handler.callbacks}
    assert Table in kinds and not kinds & {ShortPrinter, ShortProgress}
    assert "  loss " not in capsys.readouterr().out


def test_what_does_not_fit_is_left_out_whole_and_said():
    logs = {"loss": 1.5, "epoch": 0.123, "text": "as it is", **KINDS}
    assert line({"loss": 1.5, "epoch": 0.123, "text": "as it is"}, "3/30") == "3/30  loss 1.5  text as it is"
    cut = line(logs, "3/30")
    assert cut.startswith("3/30  loss 1.5  text as it is  curvature kind 0 1.2e-07, kind 1 1.2e-07")
    assert WIDTH - 20 < len(cut) <= WIDTH
    assert re.search(r", kind \d 1\.2e-07 …$", cut)
