"""examples/run_seq2seq.py: headlines of news articles."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, T5ForConditionalGeneration

import run_seq2seq
from data.bbc import load_distinct
from data.headlines import encode, load_headlines
from data.limits import LimitArguments
from errors import InputError


@pytest.fixture
def run(tmp_path):
    def call(*flags: object):
        fixed = ["--output_dir", tmp_path / "out", "--optim", "adafisherw", "--learning_rate", 1e-2, "--use_cpu"]
        tiny = ["--d_model", 16, "--num_layers", 1, "--max_train_samples", 60, "--max_eval_samples", 12]
        return run_seq2seq.main([str(flag) for flag in (*fixed, *tiny, *flags)])

    return call


def test_metrics_are_those_of_the_saved_model(run, tmp_path):
    metrics = run("--do_train", "--do_eval", "--max_steps", 3, "--per_device_eval_batch_size", 5)
    model = T5ForConditionalGeneration.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    _, evaluation = load_headlines(LimitArguments(max_eval_samples=12))
    batch = DataCollatorForSeq2Seq(tokenizer, model)(list(encode(evaluation, tokenizer, 64, 16)))
    with torch.no_grad():
        logits = model(**batch).logits
    counted = batch["labels"] != -100
    right = (logits.argmax(-1) == batch["labels"])[counted].float().mean().item()
    assert metrics["eval_token_accuracy"] == pytest.approx(right)
    assert (tmp_path / "out/adafisher_config.json").exists()


def test_it_learns_and_both_optimizers_get_the_same_training(run, compared):
    before = run("--do_train", "--do_eval", "--max_steps", 1, "--learning_rate", 1e-9)
    flags = ["--max_steps", 30, "--per_device_train_batch_size", 30, "--resume_from_checkpoint", "false"]
    after = run("--do_train", "--do_eval", *flags, "--compare", "adafisherw")
    assert after["eval_loss"] < before["eval_loss"] - 0.2
    first, second = compared()
    assert first[:-1] == second[:-1]


def test_the_first_line_is_what_has_to_be_written():
    train, evaluation = load_headlines(LimitArguments())
    whole = {article.text.splitlines()[0].strip(): article.text for article in load_distinct()}
    row = evaluation[0]
    assert whole[row["headline"]].endswith(row["body"])
    assert row["headline"] not in row["body"]
    assert not set(train["body"]) & set(evaluation["body"])


BAD_FLAGS = [
    (["--d_model", 6], "--d_model 6 is no multiple"),
    (["--max_target_length", 1], "--max_target_length must be at least 2"),
    (["--max_source_length", 0], "--max_source_length must be at least 1"),
    (["--predict_with_generate"], "no --predict_with_generate"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS, ids=[message for _, message in BAD_FLAGS])
def test_bad_flags(run, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run("--do_train", *flags)
    assert not (tmp_path / "out").exists()
