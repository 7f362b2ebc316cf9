"""``adafisher-hf coverage``: which curvature every parameter of a model gets, and how much state that takes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .errors import CommandError
from .models import TASKS, build_on_meta
from .tables import table

if TYPE_CHECKING:
    from torch import nn

    from ..insight.coverage import CoverageRow
    from ..insight.memory import Setting

COMPARED = "adafisherw"  # the optimizer whose settings have rows of their own


def add_command(commands: Any) -> None:
    """Adds the subcommand to a parser's."""
    parser = commands.add_parser(
        "coverage",
        help="show which curvature every parameter of a model gets",
        description="One row a trainable parameter: its shape, the kind of its curvature ('gradient' is the fallback), "
        "what it is for, what the structure does with it, and the modules that own it; then the share of each kind. "
        "Needs neither weights nor a network.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder with a config.json, a config file, a model type of transformers, such as gpt2 or llama, or a "
        "model of the Hub, such as bert-base-uncased, whose config is in the cache",
    )
    parser.add_argument(
        "--task", choices=TASKS, default="auto", help="which AutoModel to build (default: what the config says)"
    )
    parser.add_argument("--summary", action="store_true", help="only the shares by kind")
    parser.add_argument("--memory", action="store_true", help="bytes of optimizer state instead, beside others'")
    parser.add_argument(
        "--optim_args",
        metavar="ARGS",
        help="show what these options do with every parameter (such as structure=orthogonal); with --memory: one more "
        "row for them",
    )
    parser.add_argument("--json", action="store_true", help="JSON in place of tables")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Prints the tables or the JSON.

    Raises:
        CommandError: no such model, or wrong ``--optim_args``.
    """
    model = build_on_meta(options.model, options.task)
    if options.memory:
        text = _memory(model, options.optim_args, options.json)
    else:
        rows = _rows(model, options.optim_args)
        text = _as_json(rows, options.summary) if options.json else _as_tables(rows, options.summary)
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # As in `… | head`: nobody reads on, and python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _rows(model: nn.Module, optim_args: str | None) -> list[CoverageRow]:
    from ..config.adafisher import AdaFisherConfig
    from ..insight.coverage import coverage

    try:
        return coverage(model, AdaFisherConfig.from_optim_args(optim_args))
    except (TypeError, ValueError, FileNotFoundError) as error:
        raise CommandError(str(error)) from error


def _as_json(rows: list[CoverageRow], only_summary: bool) -> str:
    from ..insight.coverage import summarize

    content = {"kinds": [row._asdict() for row in summarize(rows)]}
    if not only_summary:
        content["parameters"] = [row._asdict() for row in rows]
    return json.dumps(content, indent=2)


def _as_tables(rows: list[CoverageRow], only_summary: bool) -> str:
    from ..insight.coverage import summarize

    shares = table(
        ("kind", "parameters", "numbers", "share"),
        [(row.kind, f"{row.parameters:,}", f"{row.numbers:,}", f"{row.share:.1%}") for row in summarize(rows)],
        right=(1, 2, 3),
    )
    if only_summary:
        return shares
    parameters = table(
        ("name", "shape", "kind", "role", "treatment", "owners"),
        [
            (
                row.name,
                "×".join(map(str, row.shape)) or "scalar",
                row.kind,
                row.role,
                row.treatment,
                ", ".join(row.owners),
            )
            for row in rows
        ],
    )
    return f"{parameters}\n\n{shares}"


def _memory(model: nn.Module, optim_args: str | None, as_json: bool) -> str:
    from ..insight.memory import compare_settings

    try:
        rows = compare_settings(model, _settings(model, optim_args))
    except (TypeError, ValueError, FileNotFoundError) as error:
        raise CommandError(str(error)) from error
    if as_json:
        return json.dumps([row._asdict() for row in rows], indent=2)
    return table(
        ("optimizer state", "bytes", "bytes / parameter"),
        [
            (name, "not known", "") if total is None else (name, f"{total:,}", f"{share:.2f}")
            for name, total, share in rows
        ],
        right=(1, 2),
    )


def _settings(model: nn.Module, optim_args: str | None) -> list[Setting]:
    """Those of COMPARED, each other optimizer as it is by default, and what was asked for.

    An optimizer with the options of COMPARED stores the same.
    """
    from ..insight.memory import SETTINGS, Setting
    from ..integrations.entries import OPTIMIZERS, OptimizerEntry

    def setting(name: str, entry: OptimizerEntry, optim_args: str | None = None) -> Setting:
        knobs = entry.config.from_optim_args(optim_args).to_dict()
        return Setting(name, entry.load(), {**({"network": model} if entry.needs_model else {}), "lr": 1e-3, **knobs})

    compared = OPTIMIZERS.get(COMPARED)
    if compared is None:
        return [setting(entry.name, entry) for entry in OPTIMIZERS.values()]
    others = [entry for entry in OPTIMIZERS.values() if entry.config is not compared.config]
    settings = [setting(text, compared, text) for text in SETTINGS] + [setting(entry.name, entry) for entry in others]
    return settings if optim_args is None else [*settings, setting(optim_args, compared, optim_args)]
