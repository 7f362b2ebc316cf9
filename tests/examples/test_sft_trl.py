"""examples/sft_trl.py: TRL's trainers with AdaFisher."""

from __future__ import annotations

import math

import pytest
from transformers import AutoModelForCausalLM

import sft_trl
from adafisher_hf import AdaFisherW
from data.continuations import preferences
from errors import InputError


@pytest.fixture
def run(tmp_path):
    def call(*flags: object, output: str = "out"):
        fixed = ["--output_dir", tmp_path / output, "--optim", "adafisherw", "--bf16", "false", "--use_cpu"]
        tiny = ["--max_length", 32, "--max_train_samples", 32, "--max_eval_samples", 8, "--report_to", "none"]
        return sft_trl.main([str(flag) for flag in (*fixed, *tiny, *flags)])

    return call


def test_sft_and_then_dpo(run, tmp_path, compared, monkeypatch):
    optimizers = []
    step = AdaFisherW.step
    monkeypatch.setattr(AdaFisherW, "step", lambda self, *args: (optimizers.append(self), step(self, *args))[1])

    before = run("--do_train", "--do_eval", "--max_steps", 1, "--learning_rate", 1e-9, output="before")
    after = run("--do_train", "--do_eval", "--max_steps", 6, "--learning_rate", 1e-2, "--compare", "adafisherw")
    assert after["eval_loss"] < before["eval_loss"] - 0.1
    first, second = compared()
    assert first[:-1] == second[:-1]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 2048

    optimizers.clear()
    dpo = ["--dpo", "--model_name_or_path", tmp_path / "out", "--learning_rate", 1e-3]
    metrics = run("--do_train", "--do_eval", *dpo, "--max_length", 512, "--max_steps", 2, output="dpo")
    assert metrics["eval_loss"] != pytest.approx(math.log(2), abs=1e-6)  # what it is before any step
    assert len(optimizers) == 2


def test_rejected_is_another_articles_continuation():
    texts = [" ".join(f"{name}{number}" for number in range(100)) for name in "abc"]
    rows = preferences(texts)
    assert [row["prompt"][:2] + row["chosen"][:3] + row["rejected"][:3] for row in rows] == [
        "a0 a4 b4",
        "b0 b4 c4",
        "c0 c4 a4",
    ]
    assert texts[0].startswith(rows[0]["prompt"] + rows[0]["chosen"])


BAD_FLAGS = [
    (["--max_train_samples", 0], "--max_train_samples must be at least 1"),
    (["--model_name_or_path", "no/such"], "cannot load the tokenizer 'no/such'"),
    (["--optim_args", "gama=1"], "gama"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS, ids=[message for _, message in BAD_FLAGS])
def test_bad_flags(run, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run("--do_train", *flags)
    assert not (tmp_path / "out").exists()


def test_prompts_that_are_longer_than_allowed(run):
    with pytest.raises(InputError, match="--max_length is too short"):
        run("--dpo", "--do_train", "--max_length", 8)
