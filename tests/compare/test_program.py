"""The script, and what a run adds to its arguments."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import HfArgumentParser, TrainingArguments

from adafisher_hf.compare.errors import CompareError
from adafisher_hf.compare.plan import Job
from adafisher_hf.compare.program import ADDED, OWN, REFUSED, Program, given

from .fakes import ADAMW, OURS


def arguments(job: Job, *args: str) -> TrainingArguments:
    """What a script makes of the flags of a run."""
    command = Program(("train.py",), args).command(job, Path("folder"))
    assert command[0] == "train.py"
    return HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(command[1:])[0]


def test_a_run_has_its_optimizer_rate_seed_and_folder():
    args = arguments(Job(OURS, 3e-3, 2), "--max_steps", "7", "--use_cpu")
    assert (args.optim, args.optim_args, args.learning_rate) == ("adafisherw", "structure=orthogonal", 3e-3)
    assert (args.seed, args.output_dir, args.max_steps) == (2, "folder/output", 7)
    assert (args.eval_strategy, args.eval_steps, args.save_strategy, args.report_to) == ("steps", 0.1, "no", [])
    assert arguments(Job(ADAMW, 1e-4, 0), "--use_cpu").optim_args is None


def test_a_rate_arrives_as_it_was_given():
    lr = 0.1 + 0.2
    assert arguments(Job(ADAMW, lr, 0), "--use_cpu").learning_rate == lr


def test_what_the_script_is_told_stays():
    args = arguments(Job(ADAMW, 1e-4, 0), "--use_cpu", "--eval-strategy=epoch", "--save_strategy", "epoch")
    assert (args.eval_strategy, args.save_strategy) == ("epoch", "epoch")
    assert arguments(Job(ADAMW, 1e-4, 0), "--use_cpu", "--eval_steps", "3").eval_steps == 3


def test_what_is_set_here_is_of_training_arguments():
    assert {*ADDED, *OWN, *REFUSED} <= set(TrainingArguments.__dataclass_fields__)


def test_flags_are_read_in_every_writing():
    args = ["--a", "1", "--b-c=2", "--flag", "--d", "-3", "--e", "x", "y"]
    assert given(args) == {"a": "1", "b_c": "2", "flag": "", "d": "-3", "e": "x"}


@pytest.mark.parametrize("name", OWN)
def test_what_the_runs_differ_in_is_not_the_scripts(name, tmp_path):
    script = tmp_path / "train.py"
    script.touch()
    with pytest.raises(CompareError, match=f"--{name} is what the runs differ in: leave it out"):
        Program((str(script),), (f"--{name.replace('_', '-')}", "x")).check()


@pytest.mark.parametrize(
    ("target", "args", "message"),
    [
        (["nowhere.py"], [], "no script 'nowhere.py' in"),
        (["-m", "nowhere.at_all"], [], "no module named 'nowhere.at_all'"),
        (["-m", ""], [], "no module named ''"),
        (["."], ["flags.json"], "give them as flags"),
        (["."], ["--push_to_hub"], "--push_to_hub would upload every model"),
        (["."], ["--load_best_model_at_end", "true"], "needs checkpoints"),
    ],
)
def test_what_no_run_could_do_is_said_before_any(target, args, message):
    with pytest.raises(CompareError, match=message):
        Program(tuple(target), tuple(args)).check()


def test_what_is_turned_off_may_be_said(tmp_path, monkeypatch):
    Program((".",), ("--push_to_hub", "False", "--max_steps", "1")).check()
    (tmp_path / "own_module.py").touch()
    monkeypatch.chdir(tmp_path)
    Program(("-m", "own_module"), ()).check()
    Program(("-m", "json.tool"), ()).check()


def test_an_edited_script_is_another_program(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("a = 1")
    program = Program((str(script),), ("--x", "1"))
    before = program.identity()
    assert program.identity() == before
    script.write_text("a = 2")
    assert program.identity() != before
    assert Program((str(script),), ("--x", "2")).identity() != program.identity()
