"""``adafisher-hf doctor``: what is installed, what works, and what would be refused; to be pasted into an issue."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..integrations.entries import OPTIMIZERS
from .models import MODEL_HELP, TASKS
from .tables import show, table
from .version import version

DEFAULT = "adafisherw"
MARK = "PROBLEM: "


def add_command(commands: Any) -> None:
    """Adds the subcommand to a parser's."""
    parser = commands.add_parser(
        "doctor",
        help="say what is installed, what works, and what would be refused",
        description="Versions, registration, kernel and devices; with MODEL also what the optimizer makes of it. Needs "
        "neither weights nor a network. Exits with status 1 where training could not start.",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help=MODEL_HELP)
    parser.add_argument("--task", choices=TASKS, default="auto", help="which AutoModel to build, as in coverage")
    parser.add_argument("--optim", choices=OPTIMIZERS, default=DEFAULT, help=f"for MODEL (default: {DEFAULT})")
    parser.add_argument("--optim_args", metavar="ARGS", help="its options, as in TrainingArguments")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Prints the findings; 1 if one of them is a problem."""
    from . import checks

    findings = list(checks.of_machine())
    if options.model is not None and all(finding.fine for finding in findings):
        findings += checks.of_model(options.model, options.task, options.optim, options.optim_args)
    lines = [(what, seen if fine else MARK + seen) for what, seen, fine in findings]
    show(table(("adafisher-hf", version()), lines))
    return int(not all(finding.fine for finding in findings))
