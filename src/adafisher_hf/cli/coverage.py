"""``adafisher-hf coverage``: which curvature every parameter of a model gets, and how much state that takes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .errors import CommandError
from .models import MODEL_HELP, TASKS, build_on_meta
from .tables import show, table
from .uncovered import uncovered

if TYPE_CHECKING:
    from torch import nn

    from ..insight.coverage import CoverageRow, KindShare
    from ..insight.memory import MemoryRow, Setting
    from ..integrations.entries import OptimizerEntry

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
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--task", choices=TASKS, default="auto", help="which AutoModel to build (default: what the config says)"
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--summary", action="store_true", help="only the shares by kind")
    shown.add_argument("--memory", action="store_true", help="bytes of optimizer state instead, beside others'")
    parser.add_argument(
        "--optim_args",
        metavar="ARGS",
        help="show what these options do with every parameter (such as structure=orthogonal); with --memory: one more "
        "row for them",
    )
    parser.add_argument("--json", action="store_true", help="JSON in place of tables")
    parser.add_argument(
        "--fail-under",
        type=share,
        metavar="SHARE",
        help="exit with status 1 where less than this share of the numbers (0 to 1) has another kind than 'gradient'",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Prints the tables or the JSON.

    Raises:
        CommandError: no such model, wrong ``--optim_args``, or less is covered than ``--fail-under`` asks for.
    """
    model = build_on_meta(options.model, options.task)
    rows = _rows(model, options.optim_args)
    content = _content(options, model, rows)
    if options.json:
        plain = {part: [row._asdict() for row in found] for part, found in content.items()}
        show(json.dumps({"model": options.model, **plain}, indent=2))
    else:
        show("\n\n".join(TABLES[part](found) for part, found in content.items()))
    if options.fail_under is not None:
        _check_share(options.model, rows, options.fail_under)
    return 0


def _content(options: argparse.Namespace, model: nn.Module, rows: list[CoverageRow]) -> dict[str, list[Any]]:
    """What was asked for, by the name that it has in the JSON."""
    from ..insight.coverage import summarize

    if options.memory:
        return {"memory": _memory(model, options.optim_args)}
    kinds = summarize(rows)
    return {"kinds": kinds} if options.summary else {"parameters": rows, "kinds": kinds}


def share(text: str) -> float:
    """A number from 0 to 1; argparse names this function where it is none."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0 to 1, such as 0.95, got {text}")
    return value


def _check_share(model: str, rows: list[CoverageRow], wanted: float) -> None:
    missing = uncovered(rows)
    if 1 - missing.share < wanted:
        covered = f"{1 - missing.share:.6g}"
        raise CommandError(f"{model!r} is covered to {covered}, less than --fail-under {wanted:g}: {missing.names}")


def _rows(model: nn.Module, optim_args: str | None) -> list[CoverageRow]:
    from ..config.adafisher import AdaFisherConfig
    from ..insight.coverage import coverage

    try:
        return coverage(model, AdaFisherConfig.from_optim_args(optim_args))
    except (TypeError, ValueError, OSError) as error:
        raise CommandError(str(error)) from error


def _kinds_table(rows: list[KindShare]) -> str:
    return table(
        ("kind", "parameters", "numbers", "share"),
        [(row.kind, f"{row.parameters:,}", f"{row.numbers:,}", f"{row.share:.1%}") for row in rows],
        right=(1, 2, 3),
    )


def _parameters_table(rows: list[CoverageRow]) -> str:
    return table(
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


def _memory_table(rows: list[MemoryRow]) -> str:
    return table(
        ("optimizer state", "bytes", "bytes / parameter"),
        [
            (name, "not known", "") if total is None else (name, f"{total:,}", f"{share:.2f}")
            for name, total, share in rows
        ],
        right=(1, 2),
    )


TABLES: dict[str, Callable[[list[Any]], str]] = {
    "parameters": _parameters_table,
    "kinds": _kinds_table,
    "memory": _memory_table,
}


def _memory(model: nn.Module, optim_args: str | None) -> list[MemoryRow]:
    from ..insight.memory import compare_settings

    try:
        return compare_settings(model, _settings(model, optim_args))
    except (TypeError, ValueError, OSError) as error:
        raise CommandError(str(error)) from error


def _settings(model: nn.Module, optim_args: str | None) -> list[Setting]:
    """Those of COMPARED, each other optimizer as it is by default, and what was asked for.

    An optimizer with the options of COMPARED stores the same.
    """
    from ..insight.memory import SETTINGS, Setting
    from ..integrations.entries import OPTIMIZERS

    def setting(name: str, entry: OptimizerEntry, optim_args: str | None = None) -> Setting:
        knobs = entry.config.from_optim_args(optim_args).to_dict()
        return Setting(name, entry.load(), {**({"network": model} if entry.needs_model else {}), "lr": 1e-3, **knobs})

    compared = OPTIMIZERS.get(COMPARED)
    installed = [entry for entry in OPTIMIZERS.values() if _is_installed(entry)]
    if compared is None:
        return [setting(entry.name, entry) for entry in installed]
    others = [entry for entry in installed if entry.config is not compared.config]
    settings = [setting(text, compared, text) for text in SETTINGS] + [setting(entry.name, entry) for entry in others]
    return settings if optim_args is None else [*settings, setting(optim_args, compared, optim_args)]


def _is_installed(entry: OptimizerEntry) -> bool:
    """Whether the packages are there that an optimizer needs."""
    try:
        entry.load()
    except ImportError:
        return False
    return True
