"""examples/run_image_classification.py: digits, a small vision transformer."""

from __future__ import annotations

import pytest
import torch
from transformers import ViTForImageClassification

import run_image_classification
from data.digits import load_digits
from data.limits import LimitArguments
from errors import InputError


@pytest.fixture
def run(tmp_path):
    def call(*flags: object):
        fixed = ["--output_dir", tmp_path / "out", "--optim", "adafisherw", "--learning_rate", 3e-3, "--use_cpu"]
        tiny = ["--hidden_size", 16, "--num_hidden_layers", 1, "--patch_size", 4]
        return run_image_classification.main([str(flag) for flag in (*fixed, *tiny, *flags)])

    return call


def test_learns_and_measures_the_model_that_it_saves(run, tmp_path):
    metrics = run("--do_train", "--do_eval", "--max_steps", 40, "--per_device_train_batch_size", 64)
    model = ViTForImageClassification.from_pretrained(tmp_path / "out")
    _, evaluation = load_digits(LimitArguments())
    with torch.no_grad():
        classes = model(pixel_values=evaluation["pixel_values"][:]).logits.argmax(-1)
    right = (classes == evaluation["labels"][:]).float().mean().item()
    assert metrics["eval_accuracy"] == pytest.approx(right)
    assert right > 0.3  # a tenth by chance
    assert model.config.id2label[7] == "7"


def test_both_optimizers_get_the_same_training(run, compared):
    flags = ["--do_train", "--do_eval", "--max_steps", 3, "--max_eval_samples", 50]
    run(*flags, "--compare", "adafisherw")
    first, second = compared()
    assert first[:-1] == second[:-1]
    run(*flags, "--compare", "adamw_torch", "--compare_learning_rate", 0.02, "--resume_from_checkpoint", "false")
    first, second = compared()
    assert second[:2] == ["adamw_torch", "0.02"]
    assert first[3] != second[3]


def test_splits_share_no_digit():
    train, evaluation = load_digits(LimitArguments())
    assert (len(train), len(evaluation)) == (1438, 359)
    assert train["pixel_values"][:].min() == -1 and train["pixel_values"][:].max() == 1
    parts = [{tuple(image.flatten().tolist()) for image in part["pixel_values"][:]} for part in (train, evaluation)]
    assert not parts[0] & parts[1]


BAD_FLAGS = [
    (["--patch_size", 3], "--patch_size 3 does not divide"),
    (["--hidden_size", 6], "--hidden_size 6 is no multiple"),
    (["--max_eval_samples", 0], "--max_eval_samples must be at least 1"),
    (["--optim_args", "gama=1"], "unknown optim_args key 'gama'"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS, ids=[message for _, message in BAD_FLAGS])
def test_bad_flags(run, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run("--do_train", *flags)
    assert not (tmp_path / "out").exists()
