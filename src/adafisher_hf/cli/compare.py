"""``adafisher-hf compare``: would it be better on my task?"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compare.defaults import ARMS, guess
from ..compare.errors import CompareError
from ..compare.program import Program, given
from .errors import CommandError
from .version import version

if TYPE_CHECKING:
    from ..compare.budget import Budget
    from ..compare.metric import Metric
    from ..compare.plan import Job, Plan
    from ..compare.results import Comparison
    from ..compare.run import Run
    from ..compare.workshop import Workshop

LAUNCHER = (sys.executable, "-m", f"{__package__}.recorded")
MANY, FLAGS = "--arms", ("--keep_output", "-h", "--help")  # options with several words behind them, and with none
INTERRUPTED = 130  # the exit status of a program that Ctrl-C ended
VERSIONS = ("torch", "transformers", "accelerate")
RUNS, SUMMARY, REPORT = "runs", "comparison.md", "report.html"  # in --out


def add_command(commands: Any) -> None:
    """Adds the subcommand to a parser's."""
    parser = commands.add_parser(
        "compare",
        help="run a training script with several optimizers and learning rates, and say which is better",
        usage="adafisher-hf compare [options] (SCRIPT | -m MODULE) [ARGS ...]",
        description="Train with SCRIPT or MODULE once an arm and learning rate, each run in a process of its own, and "
        "end with tables, one sentence that says what to do and how sure it is, and a report page. Everything behind "
        "SCRIPT is its own; it has to take the flags of TrainingArguments. The same command again goes on where "
        "it was stopped.",
        allow_abbrev=False,
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("script", nargs="?", metavar="SCRIPT", help="path of a Python script that uses the Trainer")
    target.add_argument("-m", dest="module", metavar="MODULE", help="name of a module, as in python -m")
    parser.add_argument(
        MANY,
        nargs="+",
        action="extend",
        metavar="ARM",
        help="optimizer, its optim_args, learning rates to try, the baseline first: 'adamw_torch lr=1e-4,3e-4' "
        "'adafisherw structure=orthogonal lr=1e-3,3e-3' (default: by --kind)",
    )
    parser.add_argument(
        "--kind", choices=ARMS, help="what is trained, for the arms where --arms has none (default: by ARGS)"
    )
    parser.add_argument(
        "--seeds",
        type=_count,
        default=1,
        metavar="N",
        help="the first one chooses an arm's learning rate, the others are what is reported (default: 1)",
    )
    parser.add_argument("--metric", default="eval_loss", help="what decides (default: eval_loss)")
    parser.add_argument(
        "--greater_is_better", choices=("true", "false"), help="of the metric (default: false for losses and errors)"
    )
    parser.add_argument("--budget", metavar="TIME", help="begin no run that would not end in time: 30m, 1.5h")
    parser.add_argument("--jobs", type=_count, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/compare"), metavar="FOLDER", help="for all files (default: runs/compare)"
    )
    parser.add_argument("--keep_output", action="store_true", help="keep what the runs save, such as models")
    parser.set_defaults(run=run)


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Our own arguments, the script first, for argparse would take it for one more arm; and those behind it."""
    start = _script_at(argv)
    end = start + (2 if argv[start : start + 1] == ["-m"] else 1)
    return [argv[0], *argv[start:end], *argv[1:start]], argv[end:]


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Makes the runs and prints what they say.

    Raises:
        CommandError: something was wrong before anything ran, or no run came to its end.
    """
    try:
        return _run(options, rest)
    except CompareError as error:
        raise CommandError(str(error)) from error
    except KeyboardInterrupt:
        print(f"stopped: what is done is kept in {options.out}, the same command goes on", file=sys.stderr)
        return INTERRUPTED


def _run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    from ..compare.arms import parse_arms
    from ..compare.budget import Budget, seconds_of
    from ..compare.metric import metric_of
    from ..compare.plan import Plan
    from ..compare.results import compared
    from ..compare.summary import summary

    program = Program((options.script,) if options.module is None else ("-m", options.module), tuple(rest))
    program.check()
    budget = Budget(None if options.budget is None else seconds_of(options.budget))
    metric = metric_of(options.metric, {None: None, "true": True, "false": False}[options.greater_is_better])
    plan = Plan(parse_arms(options.arms or _default_arms(options.kind, program)), options.seeds)
    _make(options.out)
    comparison = compared(plan, _made(plan, metric, _workshop(options, program), budget), metric)
    text = summary(comparison)
    (options.out / SUMMARY).write_text(f"# Comparison on `{program}`\n\n{text}\n", encoding="utf-8")
    print(f"\n{text}\n")
    print(_report(comparison, options.out / REPORT))
    return 0


def _default_arms(kind: str | None, program: Program) -> Sequence[str]:
    """Says which they are, and what made it think so."""
    if kind is None:
        guessed = guess(given(program.args))
        if guessed is None:
            raise CompareError(
                "nothing among the script's arguments says whether it trains from scratch, a pretrained model, or "
                f"adapters: give --kind ({', '.join(ARMS)}) or --arms"
            )
        kind = guessed.kind
        print(f"--kind {kind}, because of --{guessed.flag}")
    print(f"--arms {' '.join(map(repr, ARMS[kind]))}", flush=True)
    return ARMS[kind]


def _workshop(options: argparse.Namespace, program: Program) -> Workshop:
    from ..compare.workshop import Workshop

    versions = {"adafisher_hf": version(), **{name: importlib.metadata.version(name) for name in VERSIONS}}
    place, kept = options.out / RUNS, options.keep_output
    return Workshop(place, program, LAUNCHER, versions, at_once=options.jobs, keep_output=kept)


def _made(plan: Plan, metric: Metric, workshop: Workshop, budget: Budget) -> dict[Job, Run]:
    from ..compare.contest import carry_out
    from ..compare.progress import Progress

    with Progress(plan.count()) as progress:
        return carry_out(plan, metric, workshop, budget, progress.tell)


def _report(comparison: Comparison, page: Path) -> str:
    """The path of the page, or why there is none."""
    from ..report import write_report

    folders = [run.folder for standing in comparison.standings if (run := standing.best_run) is not None]
    if not folders:
        raise CommandError(f"no run came to its end with a finite {comparison.metric.name}")
    try:
        return str(write_report(folders, page))
    except (ImportError, OSError) as error:
        return f"no report page: {error}"


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--out {out}: {error.strerror or error}") from error


def _script_at(argv: Sequence[str]) -> int:
    """Where the script stands, or ``-m``; the length where neither does."""
    k = 1
    while k < len(argv) and argv[k].startswith("-") and argv[k] != "-m":
        option = argv[k]
        if option == MANY:
            k += sum(1 for _ in itertools.takewhile(_is_arm, argv[k + 1 :]))
        elif option not in FLAGS and "=" not in option:
            k += 1
        k += 1
    return k


def _is_arm(word: str) -> bool:
    """Neither an option nor the script."""
    return not (word.startswith("-") or word.endswith(".py") or os.path.exists(word))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)
