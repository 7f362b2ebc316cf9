"""``adafisher-hf run``: an unmodified script with the optimizers registered."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .runner import run_module, run_script


def add_command(commands: Any) -> None:
    """Adds the subcommand to a parser's."""
    parser = commands.add_parser(
        "run",
        help="run an unmodified training script that can then say --optim adafisherw",
        usage="adafisher-hf run [-h] (SCRIPT | -m MODULE) [ARGS ...]",
        description="Run SCRIPT or MODULE as python would, with the optimizers registered. "
        "Everything behind it is its own, and so is the exit status.",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("script", nargs="?", metavar="SCRIPT", help="path of a Python script")
    target.add_argument("-m", dest="module", metavar="MODULE", help="name of a module, as in python -m")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs what was named, with the rest of the command line as its arguments."""
    if options.module is not None:
        run_module(options.module, rest)
    else:
        run_script(options.script, rest)
    return 0


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Our own arguments, and those behind the script or module: argparse would take a ``--help`` there for ours."""
    if argv[:1] != ["run"]:
        return argv, []
    end = 3 if argv[1:2] == ["-m"] else 2
    return argv[:end], argv[end:]
