"""--compare: the second training differs in its optimizer alone."""

from __future__ import annotations

import pytest
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

import training
from comparison import CompareArguments, train_and_compare
from errors import InputError


@pytest.fixture
def parse(tmp_path):
    def call(*flags: str):
        return training.parse(["--output_dir", str(tmp_path / "out"), "--use_cpu", *flags], "description")

    return call


def test_only_the_optimizer_is_another(tmp_path):
    args = TrainingArguments(str(tmp_path), optim="adafisherw", optim_args="damping=0.3", learning_rate=2e-3, seed=7)
    other = CompareArguments("adamw_torch").other(args)
    changed = {name for name, value in vars(args).items() if vars(other)[name] != value}
    assert changed == {"optim", "optim_args", "output_dir"}
    assert (other.optim, other.optim_args, other.learning_rate) == (OptimizerNames.ADAMW_TORCH, None, 2e-3)
    assert CompareArguments("sgd", 0.5).other(args).learning_rate == 0.5


def test_table(tmp_path, compared):
    args = TrainingArguments(str(tmp_path), optim="adafisherw", learning_rate=2e-3)

    def train(args: TrainingArguments) -> dict[str, float]:
        return {"eval_loss": 1.0 if args.optim == "adafisherw" else 2.0, "train_runtime": 3.21}

    assert train_and_compare(train, args, CompareArguments("sgd", 0.5), ["eval_loss"])["eval_loss"] == 1.0
    assert compared() == [["adafisherw", "0.002", "1.0000", "3.2"], ["sgd", "0.5", "2.0000", "3.2"]]
    train_and_compare(train, args, CompareArguments(), ["eval_loss"])
    assert compared() == []


BAD_FLAGS = [
    ([], "nothing to do"),
    (
        ["--do_train", "--do_eval", "--compare", "adamwx"],
        "--compare adamwx: unknown optimizer, .*adafisherw.*adamw_torch",
    ),
    (["--do_train", "--do_eval", "--compare_learning_rate", "1"], "needs --compare"),
    (["--do_train", "--compare", "sgd"], "needs both --do_train and --do_eval"),
    (["--do_train", "--do_eval", "--compare", "sgd", "--push_to_hub"], "alone for --push_to_hub"),
    (["--do_train", "--resume_from_checkpoint", "true"], "no complete checkpoint"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS, ids=[message for _, message in BAD_FLAGS])
def test_bad_flags(parse, flags, message):
    with pytest.raises(InputError, match=message):
        parse(*flags)


def test_a_part_of_a_training_is_not_compared(parse, tmp_path):
    state = tmp_path / "out/checkpoint-2/trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text("{}")
    _, args = parse("--do_train", "--do_eval")
    assert args.resume_from_checkpoint == str(state.parent)
    comparing = ["--do_train", "--do_eval", "--compare", "sgd"]
    with pytest.raises(InputError, match="whole trainings"):
        parse(*comparing)
    _, args = parse(*comparing, "--resume_from_checkpoint", "false")
    assert args.resume_from_checkpoint is None
