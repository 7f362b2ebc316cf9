"""adafisher-hf compare, from its command line to its last sentence."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from adafisher_hf.cli import compare, main

from .test_workshop import LAUNCHER

SCRIPT = Path(__file__).with_name("script.py")
ARMS = ["--arms", "adamw_torch lr=1e-4,1e-3", "adafisherw structure=orthogonal lr=1e-3,1e-2"]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs the command with processes that train nothing; status, what was printed, and what was complained of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare, "LAUNCHER", LAUNCHER)
    (tmp_path / "train.py").touch()

    def run(*words: str) -> tuple[int, str, str]:
        status = main(["compare", *words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


# where the script begins


@pytest.mark.parametrize("rest", [[], ["--help"], ["--arms", "x", "--seeds", "3"], ["-m", "--", "a b", "other.py"]])
@pytest.mark.parametrize(
    "own",
    [
        [],
        ARMS,
        [*ARMS, "--seeds", "3"],
        ["--seeds", "3", *ARMS],
        ["--keep_output", "--budget=30m", *ARMS],
        ["--arms", "adamw_torch lr=1", "--arms", "sgd lr=1"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("target", [["train.py"], ["-m", "package.train"], ["folder"]], ids=" ".join)
def test_what_stands_behind_the_script_is_its_own(call, tmp_path, own, target, rest):
    (tmp_path / "folder").mkdir()
    head, found = compare.split(["compare", *own, *target, *rest])
    assert found == rest and head == ["compare", *target, *own]


def test_the_options_without_a_value_are_known():
    """What stands behind any other option is its value, and not the script."""
    commands = argparse.ArgumentParser().add_subparsers()
    compare.add_command(commands)
    actions = commands.choices["compare"]._actions
    assert {name for action in actions if action.nargs == 0 for name in action.option_strings} == set(compare.FLAGS)


def test_without_a_script_there_is_none():
    assert compare.split(["compare", *ARMS]) == (["compare", *ARMS], [])


@pytest.mark.parametrize(
    "words", [[], ARMS, ["--seeds", "0", "train.py"], ["--jobs", "two", "train.py"], ["--kind", "big", "train.py"]]
)
def test_wrong_usage(call, words, capsys):
    with pytest.raises(SystemExit) as caught:
        call(*words)
    assert caught.value.code == 2 and "usage: adafisher-hf compare" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*ARMS, "nowhere.py"], "no script 'nowhere.py'"),
        ([*ARMS, "-m", "nowhere.at_all"], "no module named 'nowhere.at_all'"),
        ([*ARMS, "train.py", "--learning_rate", "1"], "--learning_rate is what the runs differ in"),
        (["train.py", "--max_steps", "3"], "give --kind (scratch, pretrained, lora) or --arms"),
        (["--arms", "adamw_torch lr=1", "train.py"], "needs two arms or more"),
        (["--arms", "adamw_tourch lr=1", "sgd lr=1", "train.py"], "did you mean 'adamw_torch'?"),
        ([*ARMS, "--budget", "long", "train.py"], "--budget must be a time such as 30m"),
        ([*ARMS, "--out", "train.py/x", "train.py"], "--out train.py/x: Not a directory"),
    ],
)
def test_what_is_wrong_gets_one_line_before_anything_runs(call, tmp_path, words, message):
    status, out, error = call(*words)
    assert (status, out) == (1, "") and error.startswith("adafisher-hf: error: ") and message in error
    assert error.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_a_comparison_and_the_same_command_again(call, tmp_path):
    pytest.importorskip("matplotlib")
    status, out, _ = call(*ARMS, "--seeds", "4", "train.py", "--max_steps", "10")
    assert status == 0
    lines = out.strip().splitlines()
    assert "| adamw_torch                     | 1e-3 |" in out and "| adafisherw structure=orthogonal | 1e-3 |" in out
    assert lines[-2:] == ["", "runs/compare/report.html"]
    assert lines[-3].startswith("Stay with adamw_torch at lr 1e-3: no arm is better by more than 2 standard errors")
    assert "over 3 seeds" in lines[-3]
    folder = tmp_path / "runs/compare"
    assert out.strip().removesuffix("runs/compare/report.html").strip() in (folder / "comparison.md").read_text()
    assert "adafisherw-structure=orthogonal-lr=1e-3-seed-1" in (folder / "report.html").read_text()
    made = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/run.json")}
    assert len(made) == 4 + 2 * 3
    assert call(*ARMS, "--seeds", "4", "train.py", "--max_steps", "10")[:2] == (status, out)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/run.json")} == made


def test_a_crash_is_a_row_and_is_told_at_once(call):
    status, out, error = call("--arms", "adamw_torch lr=1e-3", "adafisherw lr=1e-3,1", "train.py")
    assert status == 0 and "ValueError: no such data" in out and "log.txt" in out
    assert "failed: adafisherw lr=1e0, seed 0: ValueError: no such data" in error
    assert "one seed is no evidence" in out


def test_nothing_but_crashes_is_a_failure(call):
    status, out, error = call("--arms", "adamw_torch lr=1", "adafisherw lr=2", "train.py")
    assert status == 1 and "ValueError: no such data" in out
    assert "does it need --do_train?" in out and "no run came to its end with a finite eval_loss" in error


def test_the_default_arms_are_said_with_the_reason(call):
    out = call("train.py", "--model_name_or_path", "gpt2")[1]
    first, second = out.splitlines()[:2]
    assert first == "--kind pretrained, because of --model_name_or_path"
    assert second == "--arms 'adamw_torch lr=1e-5,3e-5,1e-4' 'adafisherw lr=1e-5,3e-5,1e-4'"
    assert call("--kind", "lora", "train.py")[1].startswith("--arms 'adamw_torch lr=1e-4,3e-4,1e-3'")


def test_a_metric_that_the_runs_have_not(call):
    status, _, error = call(*ARMS, "--metric", "f1", "train.py")
    assert status == 1 and "reports no 'eval_f1' (--metric), there is: eval_loss" in error


def test_an_interrupt_says_that_the_same_command_goes_on(call, monkeypatch):
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "_made", interrupted)
    status, _, error = call(*ARMS, "train.py")
    assert status == 130 and "is kept in runs/compare, the same command goes on" in error


@pytest.mark.slow
def test_a_script_of_ones_own_for_real(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arms = ["--arms", "sgd lr=1e-6", "adafisherw structure=orthogonal lr=1e-2,1e9"]
    assert main(["compare", *arms, "--seeds", "3", "--jobs", "2", str(SCRIPT), "--max_steps", "40", "--use_cpu"]) == 0
    out = capsys.readouterr().out
    assert "Take adafisherw structure=orthogonal at lr 1e-2: its test_loss is" in out and "2 seeds, which is few" in out
    assert "2 runs at a time shared the machine" in out and "test_loss after 40 steps" in out
    assert len(list(tmp_path.glob("runs/compare/runs/*/run.json"))) == 7
    assert not list(tmp_path.rglob("model.safetensors"))
