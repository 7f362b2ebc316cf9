"""The command ``adafisher-hf``: one file a subcommand, which adds its parser and runs it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ..config.base import OptimizerConfig
from ..config.knobs import help_of
from ..integrations.entries import OPTIMIZERS
from . import compare, coverage, doctor, report, run
from .errors import CommandError
from .models import TASKS, build_on_meta
from .version import version

__all__ = ["TASKS", "build_on_meta", "main"]

PROGRAM = "adafisher-hf"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; what a script of ``run`` raises, SystemExit included, passes through.

    Args:
        argv: without the name of the program; by default that of the process.

    Returns:
        The exit status: 0, or 1 for something wrong with what was given. A mistake in the command line itself ends the
        program with 2, ``run`` with what its script ends with.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    head, rest = (compare if argv[:1] == ["compare"] else run).split(argv)
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what could come next
        import argcomplete

        argcomplete.autocomplete(parser)
    options = parser.parse_args(head)
    try:
        return options.run(options, rest)
    except CommandError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return error.status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description='AdaFisher for Hugging Face Transformers: optim="adafisher" and optim="adafisherw".',
        epilog=_options_of_all(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (run, compare, coverage, report, doctor):
        command.add_command(commands)
    return parser


def _options_of_all() -> str:
    """The keys of every registered optimizer; several that have the same are named together."""
    names: dict[type[OptimizerConfig], list[str]] = {}
    for entry in OPTIMIZERS.values():
        names.setdefault(entry.config, []).append(f"optim={entry.name}")
    sections = [
        f"keys of TrainingArguments.optim_args (key=value,key=value) for {' and '.join(optims)}:\n{help_of(config)}"
        for config, optims in names.items()
    ]
    return "\n\n".join(sections)
