"""``adafisher-hf report``: one page about training runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import CommandError


def add_command(commands: Any) -> None:
    """Adds the subcommand to a parser's."""
    parser = commands.add_parser(
        "report",
        help="one HTML page about one or several training runs",
        description="Loss, learning rate, gradient norm, and the curvature of every layer over the steps, from the "
        "trainer_state.json and curvature.jsonl (adafisher_hf.CurvatureCallback) of each run.",
    )
    parser.add_argument("folders", nargs="+", metavar="RUN_DIR", type=Path, help="output_dir of a training run")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="the page (default: report.html in the first RUN_DIR)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Writes the page and prints its path.

    Raises:
        CommandError: no such folder, no matplotlib, or the page cannot be written.
    """
    from ..report import write_report

    try:
        print(write_report(options.folders, options.output))
    except (OSError, ImportError) as error:
        raise CommandError(str(error)) from error
    return 0
