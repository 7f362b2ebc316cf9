"""``adafisher-hf report``: one page about training runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import CommandError

EVERY = 10.0  # seconds


def add_command(commands: Any) -> None:
    """Adds the subcommand to a parser's."""
    parser = commands.add_parser(
        "report",
        help="one HTML page about one or several training runs",
        description="Loss, learning rate, gradient norm, and the curvature of every layer over the steps, from the "
        "trainer_state.json and curvature.jsonl (adafisher_hf.CurvatureCallback) of each run, from TensorBoard's event "
        "files, or from an export of W&B's history (csv, json, jsonl).",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN_DIR", type=Path, help="output_dir of a training run, or a tracker's files of it"
    )
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="the page (default: report.html in the first RUN_DIR)"
    )
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        type=_seconds,
        nargs="?",
        const=EVERY,
        help=f"write the page again every so often (default: {EVERY:g}) until the runs have ended, or Ctrl-C",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Writes the page and prints its path.

    Raises:
        CommandError: no such folder, no vl-convert, or the page cannot be written.
    """
    from ..report import watch, write_report

    try:
        if options.watch is None:
            print(write_report(options.runs, options.output))
        else:
            print(watch(options.runs, options.output, options.watch, say=_say))
    except (OSError, ImportError) as error:
        raise CommandError(str(error)) from error
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < 86400:
        raise argparse.ArgumentTypeError("must be above 0 and at most a day")
    return seconds
