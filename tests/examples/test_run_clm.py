"""examples/run_clm.py, from text files to a trained model and back."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import run_clm
from adafisher_hf import AdaFisherConfig
from errors import InputError

SCRIPT = Path(run_clm.__file__)
ANIMALS = ("cat", "dog", "cow")
SENTENCES = [f"The {animal} sees {number} houses by the river." for animal in ANIMALS for number in range(40)]
ARCHITECTURE = "hidden_size=32,head_dim=8,intermediate_size=32,num_hidden_layers=1"
TINY = ["--config_overrides", ARCHITECTURE, "--block_size", "16"]


@pytest.fixture
def run(tmp_path):
    """Runs the script in this process with a tiny model, three steps, and everything below tmp_path."""

    def call(*flags: object, output: str = "out", steps: int = 3):
        settings = ["--output_dir", tmp_path / output, "--cache_dir", tmp_path / "cache", "--max_steps", steps]
        fixed = [*TINY, "--optim", "adafisherw", "--learning_rate", 1e-2, "--logging_steps", 1, "--use_cpu"]
        return run_clm.main([str(flag) for flag in (*settings, *fixed, *flags)])

    return call


@pytest.fixture
def text_file(tmp_path):
    return write(tmp_path / "text.txt", SENTENCES)


def write(path: Path, sentences: list[str], column: str = "text") -> Path:
    if path.suffix == ".txt":
        path.write_text("\n".join(sentences))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["number", column])
            writer.writerows(enumerate(sentences))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"number": i, column: text}) for i, text in enumerate(sentences)))
    else:
        path.write_text(json.dumps([{"number": i, column: text} for i, text in enumerate(sentences)]))
    return path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_without_data_it_learns_the_news(run, tmp_path, capsys):
    metrics = run("--do_train", "--do_eval", "--eval_strategy", "steps", "--eval_steps", 1, "--max_eval_samples", 20)

    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    assert 0 <= metrics["eval_token_accuracy"] <= 1
    history = json.loads((tmp_path / "out/trainer_state.json").read_text())["log_history"]
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert losses[2] < losses[0]
    said = capsys.readouterr().out
    for name in ("checkpoint-3", "loss_curve.png", "adafisher_config.json"):
        assert (tmp_path / "out" / name).exists()
        assert str(tmp_path / "out" / name) in said
    assert (tmp_path / "out/loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert "BBC News" in (tmp_path / "out/README.md").read_text()


def test_optimizer_options_are_kept(run, tmp_path, text_file):
    run("--do_train", "--train_file", text_file, "--optim_args", "damping=0.2,update_interval=3")
    config = AdaFisherConfig.from_pretrained(tmp_path / "out")
    assert (config.damping, config.update_interval) == (0.2, 3)


def test_metrics_are_those_of_the_saved_model(run, tmp_path, text_file):
    metrics = run("--do_train", "--do_eval", "--train_file", text_file, "--per_device_eval_batch_size", 2)

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    held_out = "\n".join(SENTENCES[-12:])
    ids = torch.tensor(tokenizer(held_out)["input_ids"])
    blocks = ids[: len(ids) // 16 * 16].view(-1, 16)
    with torch.no_grad():
        output = model(input_ids=blocks, labels=blocks)
    right = output.logits.argmax(-1)[:, :-1] == blocks[:, 1:]
    assert metrics["eval_token_accuracy"] == pytest.approx(right.float().mean().item())
    assert metrics["eval_loss"] == pytest.approx(output.loss.item(), rel=1e-4)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".json", ".jsonl", ".JSONL"])
def test_every_kind_of_file(run, tmp_path, suffix):
    path = write(tmp_path / f"mine{suffix.lower()}", SENTENCES, column="sentence")
    path = path.rename(path.with_suffix(suffix))
    metrics = run("--do_train", "--do_eval", "--train_file", path)
    assert math.isfinite(metrics["eval_loss"])


def test_validation_file_of_another_kind(run, tmp_path, text_file):
    validation = write(tmp_path / "validation.csv", SENTENCES[:20])
    metrics = run("--do_train", "--do_eval", "--train_file", text_file, "--validation_file", validation)
    assert math.isfinite(metrics["eval_loss"])


def test_text_column_is_chosen(run, tmp_path):
    rows = [{"title": "x", "body": text} for text in SENTENCES]
    (tmp_path / "two.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"--text_column must name one of \['title', 'body'\]"):
        run("--do_train", "--train_file", tmp_path / "two.json")
    run("--do_train", "--train_file", tmp_path / "two.json", "--text_column", "body")


def test_evaluates_a_trained_model(run, tmp_path, text_file):
    trained = run("--do_train", "--do_eval", "--train_file", text_file, "--validation_file", text_file)
    alone = run_clm.main(
        f"--model_name_or_path {tmp_path / 'out'} --validation_file {text_file} --do_eval --block_size 16 --use_cpu "
        f"--output_dir {tmp_path / 'alone'} --cache_dir {tmp_path / 'cache'}".split()
    )
    assert alone["eval_loss"] == pytest.approx(trained["eval_loss"])
    assert alone["eval_token_accuracy"] == trained["eval_token_accuracy"]


def test_goes_on_after_an_interruption_as_if_nothing_had_happened(run, tmp_path, text_file, monkeypatch, capsys):
    flags = ["--do_train", "--train_file", text_file, "--save_steps", 2, "--seed", 3]
    run(*flags, steps=6, output="whole")

    step = run_clm.AdaFisherTrainer.training_step
    with monkeypatch.context() as patch:
        patch.setattr(run_clm.AdaFisherTrainer, "training_step", interrupt_after(5, step))
        with pytest.raises(SystemExit) as stopped:
            run(*flags, steps=6)
    assert stopped.value.code == 130
    # A save that was cut short: the Trainer's state, which it writes last, is not there.
    (tmp_path / "out/checkpoint-4/trainer_state.json").unlink()

    with monkeypatch.context() as patch:
        patch.setattr(run_clm.AdaFisherTrainer, "training_step", interrupt_after(4, step))  # 6 - 2 steps and no more
        run(*flags, steps=6)
    assert f"going on from {tmp_path / 'out/checkpoint-2'}" in capsys.readouterr().out
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def interrupt_after(count: int, step):
    def interrupted(*args, **kwargs):
        nonlocal count
        count -= 1
        if count < 0:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    return interrupted


def test_resume_flag(run, tmp_path, text_file, capsys):
    flags = ["--do_train", "--train_file", text_file, "--save_steps", 1]
    for wish in ("true", tmp_path / "out"):
        with pytest.raises(InputError, match="no complete checkpoint"):
            run(*flags, "--resume_from_checkpoint", wish)
    run(*flags)
    shutil.move(tmp_path / "out/checkpoint-2", tmp_path / "elsewhere")
    capsys.readouterr()

    run(*flags, "--resume_from_checkpoint", tmp_path / "elsewhere", output="second")
    assert f"going on from {tmp_path / 'elsewhere'}" in capsys.readouterr().out
    run(*flags, "--resume_from_checkpoint", "false")
    assert "going on" not in capsys.readouterr().out


BAD_FILES = [
    ("missing.txt", None, "no such file"),
    ("notes.md", "text", r"unknown kind of file '\.md'.*\.txt, \.csv, \.json, \.jsonl"),
    ("empty.txt", "", "no text in it"),
    ("empty.csv", "", "no text in it"),
    ("blank.txt", " \n\n \n", "no text in it"),
    ("blank.csv", "number,text\n1,\n2,\n", r"no column with text, only \['number', 'text'\]"),
    ("two.csv", "a,b\none,two\nthree,four\n", "which column is the text"),
    ("broken.jsonl", '{"text": "one"}\n{"text": ', "cannot be read as json"),
    ("latin.txt", b"caf\xe9\n" * 100, "cannot be read as text: .*utf-8"),
    ("one.csv", "text\nonly one\n", "give a --validation_file"),
    ("short.txt", "one\ntwo\n", "less than one block of 16 tokens: a smaller --block_size or more text"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES, ids=[name for name, *_ in BAD_FILES])
def test_bad_files(run, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        run("--do_train", "--train_file", tmp_path / name)
    assert not (tmp_path / "out").exists()


BAD_FLAGS = [
    ([], "nothing to do"),
    (["--do_train", "--block_size", 4096], "--block_size 4096 is more than the 1024 tokens"),
    (["--do_train", "--block_size", 0], "--block_size must be at least 1"),
    (["--do_train", "--validation_split_percentage", 100], "must be between 0 and 100"),
    (["--do_train", "--dataset_name", "some/where"], "either --dataset_name or --train_file"),
    (["--do_train", "--text_column", "txt", "--train_file", "{csv}"], "no column 'txt' with strings, only"),
    (["--do_train", "--config_overrides", "hidden=3"], "--config_overrides hidden=3"),
    (["--do_train", "--tokenizer_name", "no/such"], "cannot load the tokenizer 'no/such'"),
    (["--do_train", "--config_name", "no/such"], "cannot load the configuration 'no/such'"),
    (["--do_train", "--model_type", "lama"], "cannot load the model type 'lama'"),
    (["--do_train", "--model_name_or_path", "no/such"], "--config_overrides is for training from scratch"),
    (["--do_train", "--optim", "adafischer"], "adafischer"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS, ids=[message for _, message in BAD_FLAGS])
def test_bad_flags(run, tmp_path, text_file, flags, message):
    table = write(tmp_path / "table.csv", SENTENCES)
    flags = [str(flag).format(csv=table) for flag in flags]
    with pytest.raises((InputError, SystemExit), match=message if "--optim" not in flags else None):
        run("--train_file", text_file, *flags)
    assert not (tmp_path / "out").exists()


def test_unknown_dataset():
    with pytest.raises(InputError, match="cannot load the dataset 'no/such'"):
        run_clm.main(["--do_train", "--dataset_name", "no/such", "--use_cpu"])


def test_as_a_program_from_another_folder(tmp_path, text_file):
    def program(*flags: object) -> subprocess.CompletedProcess:
        command = [sys.executable, SCRIPT, "--output_dir", "out", "--cache_dir", "cache", "--use_cpu", *TINY, *flags]
        return subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, check=False)

    good = program("--do_train", "--train_file", text_file, "--optim", "adafisherw", "--max_steps", 1)
    assert good.returncode == 0, good.stderr
    assert (tmp_path / "out/loss_curve.png").exists()

    bad = program("--do_train", "--train_file", "nothing.txt")
    assert bad.returncode == 1
    assert bad.stderr.strip().splitlines()[-1] == "error: nothing.txt: no such file"
    assert "Traceback" not in bad.stderr
