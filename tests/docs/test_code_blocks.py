"""Every ``python`` and ``bash`` block of README.md, CONTRIBUTING.md, docs/*.md and docs/family/*.md does what it shows.

Python blocks of a page run one after the other and share their names; they start with those of ``prepared``. Of a
command everything but the long work is done: ``adafisher-hf coverage`` runs and prints what the ``text`` block below it
shows, make targets are looked up, scripts parse their flags and stop. A block that cannot run has a line
``<!-- not run: why -->`` directly above it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import re
import runpy
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from packaging.requirements import Requirement
from transformers import HfArgumentParser

from adafisher_hf import cli
from adafisher_hf.compare.plan import Job
from adafisher_hf.compare.workshop import Workshop
from tests.models import llama

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "docs/family")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for folder in FOLDERS for page in sorted((ROOT / folder).glob("*.md"))),
]
IN_A_COPY = "extending.md"  # changes files of the package: tests/docs/test_extending.py
RECIPES = "recipes.md"  # each block is a script of its own: tests/docs/test_recipes.py
ELSEWHERE = (IN_A_COPY, RECIPES)
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w+-]+)(?P<title>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S
)
SETTING = re.compile(r"\w+=")  # of the environment, before a command
OUTPUT_IS_CHECKED = ["adafisher-hf", "coverage"]
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.*?) -->\s*\Z", re.S)


class CodeBlock(NamedTuple):
    """A fenced block of a page.

    Attributes:
        reason: why it is not run; None: it is.
        shown: the block of text right below it, its output; None: there is none.
    """

    page: str
    line: int
    language: str
    title: str
    code: str
    reason: str | None
    shown: str | None = None


def code_blocks(page: Path) -> list[CodeBlock]:
    text = page.read_text(encoding="utf-8")
    blocks = []
    for fence in FENCE.finditer(text):
        marker = NOT_RUN.search(text[: fence.start()])
        line = text.count("\n", 0, fence.start()) + 1
        code = textwrap.dedent(fence["code"])
        below = FENCE.match(text, fence.end() + 2)
        shown = below["code"] if below and below["language"] == "text" else None
        reason = marker["reason"] if marker else None
        blocks.append(CodeBlock(page.name, line, fence["language"], fence["title"].strip(), code, reason, shown))
    return blocks


def to_run(page: Path, language: str) -> list[CodeBlock]:
    return [block for block in code_blocks(page) if block.language == language and block.reason is None]


def ids(page: Path) -> str:
    return page.name


# what a page may count on


def prepared() -> dict[str, Any]:
    """The names that pages use without making them: what a reader has already."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 64, (8, 8), generator=generator)
    dataset = [{"input_ids": row, "labels": row} for row in rows]
    return {
        "__name__": "__main__",
        "model": llama(),
        "dataset": dataset,
        "eval_dataset": dataset[:4],
        "batch": {"input_ids": rows, "labels": rows},
        "batches": [{"input_ids": part, "labels": part} for part in rows.split(4)],
    }


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory, beside what the repository's commands name."""
    for name in ("examples", "tests", "docs", "Makefile", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in ELSEWHERE and to_run(page, "python")], ids=ids
)
def test_python(page, elsewhere):
    names = prepared()
    for block in to_run(page, "python"):
        # Padded, so that a traceback has the line of the page.
        exec(compile("\n" * block.line + block.code, str(page), "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if to_run(page, "bash")], ids=ids)
def test_bash(page, elsewhere, capsys):
    for block in to_run(page, "bash"):
        capsys.readouterr()
        for command in commands(block.code):
            try:
                check(command)
            except (Exception, SystemExit) as error:
                raise AssertionError(f"{page.name}:{block.line}: {shlex.join(command)}: {error}") from error
        if block.shown is not None and all(words[:2] == OUTPUT_IS_CHECKED for words in commands(block.code)):
            assert capsys.readouterr().out == block.shown, f"{page.name}:{block.line}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_what_is_not_run_has_a_reason_and_every_block_a_language(page):
    for block in code_blocks(page):
        assert block.reason is None or len(block.reason) > 10, f"{page.name}:{block.line}"
    opening = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.M)[::2]
    assert all(opening), f"{page.name} has a fence without a language (text is one)"
    assert {"py", "python3", "sh", "shell"}.isdisjoint(opening), f"{page.name}: write python or bash"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_no_linter_deletes_the_import_that_registers(page):
    """Such as ruff --fix, for which a name that is not used is not needed."""
    for block in code_blocks(page):
        if re.search(r"^import adafisher_hf$", block.code, re.M):
            assert "adafisher_hf." in block.code, f"{page.name}:{block.line}: say # noqa: F401"


# commands


def commands(code: str) -> list[list[str]]:
    """The commands of a block: continued lines joined, comments, ``cd`` and settings of the environment left out."""
    lines = code.replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    stripped = [list(itertools.dropwhile(SETTING.match, words)) for words in split]
    return [words for words in stripped if words and words[0] not in ("cd", "export")]


def check(words: list[str]) -> None:
    """Raises where the command would not do what the page says."""
    name = Path(words[0]).name
    assert name in CHECKS, f"no check for {name!r}: add one here, or mark the block with <!-- not run: why -->"
    CHECKS[name](words[1:])


def check_make(args: list[str]) -> None:
    subprocess.run(["make", "-n", *args], cwd=ROOT, check=True, capture_output=True)


def check_own_command(args: list[str]) -> None:
    if args[0] == "run":
        check_script(args[1:])
    elif args[0] == "compare":
        check_comparison(args)
    elif args[0] == "report":
        make_run_folders(args[1:])
        assert cli.main(args) == 0
    else:
        assert cli.main(args) == 0


def check_comparison(args: list[str]) -> None:
    """Runs the command up to its first run, whose script parses its flags."""

    def start(self: Workshop, job: Job) -> None:
        check_script(self.program.command(job, Path("run")))
        raise FlagsAreFine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workshop, "start", start)
        with pytest.raises(FlagsAreFine):
            cli.main(args)


def make_run_folders(args: list[str]) -> None:
    """Of runs that have ended: ``--watch`` waits for that."""
    log = [{"step": 1, "loss": 1.0}, {"step": 1, "train_runtime": 1.0}]
    for folder in (arg for arg in args if not arg.startswith("-") and "." not in Path(arg).name):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "trainer_state.json").write_text(json.dumps({"log_history": log}))


def check_python(args: list[str]) -> None:
    if args[:2] == ["-m", "pytest"]:
        check_pytest(args[2:])
    elif args[:2] == ["-m", "adafisher_hf"]:
        check_own_command(args[2:])
    elif args[:2] == ["-m", "pip"]:
        check_pip(args[2:])
    elif args[:2] == ["-m", "venv"]:
        assert len(args) == 3
    elif args[0] == "-c":
        compile(args[1], "python -c", "exec")
    else:
        check_script(args)


class FlagsAreFine(BaseException):
    """Raised where a script has read its flags; nothing in a script catches it."""


def check_script(args: list[str]) -> None:
    """Runs a script up to the point where it has parsed its flags."""
    script = ROOT / args[0]
    assert script.is_file(), f"no script {args[0]}"
    if script.parent == ROOT / "docs":
        return  # generators of pages: no flags, and they write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *args[1:]])
        patch.setattr(sys, "path", [str(script.parent), *sys.path])
        for parser, method in PARSERS:
            patch.setattr(parser, method, then_stop(getattr(parser, method)))
        with pytest.raises(FlagsAreFine):
            runpy.run_path(str(script), run_name="__main__")


PARSERS = (
    (HfArgumentParser, "parse_args_into_dataclasses"),
    (HfArgumentParser, "parse_json_file"),
    (argparse.ArgumentParser, "parse_args"),
)


def then_stop(parse: Callable) -> Callable:
    def parse_and_stop(*args: Any, **kwargs: Any) -> None:
        parse(*args, **kwargs)
        raise FlagsAreFine

    return parse_and_stop


def check_accelerate(args: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert args[0] == "launch"
    check_launched(launch_command_parser().parse_args(args[1:]))


def check_torchrun(args: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    check_launched(get_args_parser().parse_args(args))


def check_launched(launch: Any) -> None:
    check_python([*(["-m"] if launch.module else []), launch.training_script, *launch.training_script_args])


def check_pip(args: list[str]) -> None:
    """``pip install`` of this project, of its checkout, or of something that its own files name."""
    assert args[0] == "install"
    project = importlib.metadata.metadata("adafisher-hf")
    known = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    rest = iter(args[1:])
    for word in rest:
        if word == "-c":
            assert (ROOT / next(rest)).is_file()
        elif not word.startswith("-") and not word.endswith(".whl"):
            requirement = Requirement(word.replace(".", project["Name"], 1) if word.startswith(".") else word)
            if requirement.name == project["Name"]:
                assert requirement.extras <= set(project.get_all("Provides-Extra"))
            else:
                assert requirement.name.lower().replace("_", "-") in known


def check_pytest(args: list[str]) -> None:
    for path in (arg.partition("::")[0] for arg in args if arg.endswith(".py") or "/" in arg):
        assert (ROOT / path).exists(), path


def check_ruff(args: list[str]) -> None:
    assert args[0] in ("check", "format")


def check_mkdocs(args: list[str]) -> None:
    assert args[0] in ("build", "serve")


CHECKS: dict[str, Callable[[list[str]], Any]] = {
    "accelerate": check_accelerate,
    "adafisher-hf": check_own_command,
    "make": check_make,
    "mkdocs": check_mkdocs,
    "mypy": lambda args: None,
    "pip": check_pip,
    "pytest": check_pytest,
    "python": check_python,
    "python3": check_python,
    "ruff": check_ruff,
    "torchrun": check_torchrun,
}
