"""examples/accelerate_loop.py: a training loop of one's own."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import accelerate_loop
from adafisher_hf import AdaFisherW
from errors import InputError


@pytest.fixture
def run(tmp_path):
    def call(*flags: object):
        fixed = ["--output_dir", tmp_path / "out", "--batch_size", 2, "--max_eval_samples", 4]
        return accelerate_loop.main([str(flag) for flag in (*fixed, *flags)])

    return call


def test_learns_and_compares(run, tmp_path, compared):
    before = run("--max_steps", 1, "--learning_rate", 1e-9)
    after = run("--max_steps", 8, "--learning_rate", 1e-2, "--compare", "adafisherw")
    assert after["eval_loss"] < before["eval_loss"] - 0.1
    first, second = compared()
    assert first[:-1] == second[:-1] == ["adafisherw", "0.01", f"{after['eval_loss']:.4f}"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 2048


def test_accumulated_batches_are_one_step(run, monkeypatch):
    steps = []
    step = AdaFisherW.step
    monkeypatch.setattr(AdaFisherW, "step", lambda self, *args: (steps.append(self), step(self, *args))[1])
    run("--max_steps", 2, "--gradient_accumulation_steps", 3)
    assert len(steps) == 2


def test_options_reach_the_optimizer():
    arguments = accelerate_loop.LoopArguments(optim_args="damping=0.2", learning_rate=0.5, weight_decay=0.3)
    model = torch.nn.Linear(2, 2)
    for name in ("adafisherw", "adafisher", "adamw_torch"):
        optimizer = accelerate_loop.OPTIMIZERS[name](model, arguments)
        assert optimizer.name == name if "adafisher" in name else isinstance(optimizer, torch.optim.AdamW)
        group = optimizer.param_groups[0]
        assert (group["lr"], group["weight_decay"]) == (0.5, 0.3)
        assert getattr(getattr(optimizer, "config", None), "damping", 0.2) == 0.2


BAD_FLAGS = [
    (["--optim", "sgd"], "--optim sgd: unknown here, expected one of adafisherw, adafisher, adamw_torch"),
    (["--compare", "lion_32bit"], "--compare lion_32bit: unknown here"),
    (["--compare", "nothing"], "--compare nothing: unknown optimizer"),
    (["--optim_args", "gama=1"], "gama"),
    (["--max_steps", 0], "--max_steps must be at least 1"),
    (["--learning_rate", 0], "--learning_rate must be more than 0"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS, ids=[message for _, message in BAD_FLAGS])
def test_bad_flags(run, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run(*flags)
    assert not (tmp_path / "out").exists()
