"""The command ``adafisher-hf``. A subcommand is a function that adds its parser and one that runs it."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import knob_help
from .runner import CannotRun, run_module, run_script

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

    from .curvature import CoverageRow

PROGRAM = "adafisher-hf"

TASKS = {
    "auto": "",
    "base": "AutoModel",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
    "image-classification": "AutoModelForImageClassification",
    "image-text-to-text": "AutoModelForImageTextToText",
    "speech-seq2seq": "AutoModelForSpeechSeq2Seq",
}


class UsageError(Exception):
    """Something the user has to put right; the message is all there is to say."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; what a script of ``run`` raises, SystemExit included, passes through.

    Returns:
        The exit status: 0, or 2 for a mistake in the command line.
    """
    head, rest = _split(list(sys.argv[1:] if argv is None else argv))
    options = _parser().parse_args(head)
    try:
        return options.run(options, rest)
    except CannotRun as error:
        return _fail(error, error.status)
    except UsageError as error:
        return _fail(error, 2)


def _fail(error: Exception, status: int) -> int:
    print(f"{PROGRAM}: error: {error}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description='AdaFisher for Hugging Face Transformers: optim="adafisher" and optim="adafisherw".',
        epilog=f"keys of TrainingArguments.optim_args (key=value,key=value):\n{knob_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_coverage(commands)
    _add_report(commands)
    return parser


# run ------------------------------------------------------------------------------------------------------------------


def _add_run(commands: Any) -> None:
    parser = commands.add_parser(
        "run",
        help="run an unmodified training script that can then say --optim adafisherw",
        usage=f"{PROGRAM} run [-h] (SCRIPT | -m MODULE) [ARGS ...]",
        description="Run SCRIPT or MODULE as python would, with the optimizers registered. "
        "Everything behind it is its own, and so is the exit status.",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("script", nargs="?", metavar="SCRIPT", help="path of a Python script")
    target.add_argument("-m", dest="module", metavar="MODULE", help="name of a module, as in python -m")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace, rest: list[str]) -> int:
    if options.module is not None:
        run_module(options.module, rest)
    else:
        run_script(options.script, rest)
    return 0


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Our own arguments, and those behind the script or module: argparse would take a ``--help`` there for ours."""
    if argv[:1] != ["run"]:
        return argv, []
    end = 3 if argv[1:2] == ["-m"] else 2
    return argv[:end], argv[end:]


# coverage -------------------------------------------------------------------------------------------------------------


def _add_coverage(commands: Any) -> None:
    parser = commands.add_parser(
        "coverage",
        help="show which curvature every parameter of a model gets",
        description="One row a trainable parameter: its shape, the kind of its curvature ('gradient' is the fallback) "
        "and the modules that own it; then the share of each kind. Needs neither weights nor a network.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a folder with a config.json, a config file, or a model type of transformers, such as gpt2 or llama",
    )
    parser.add_argument(
        "--task", choices=TASKS, default="auto", help="which AutoModel to build (default: what the config says)"
    )
    parser.add_argument("--summary", action="store_true", help="only the shares by kind")
    parser.add_argument("--memory", action="store_true", help="bytes of optimizer state instead, beside AdamW's")
    parser.add_argument(
        "--optim_args", metavar="ARGS", help="with --memory: one more row for these (such as max_factor_dim=4096)"
    )
    parser.add_argument("--json", action="store_true", help="JSON in place of tables")
    parser.set_defaults(run=_coverage)


def _coverage(options: argparse.Namespace, rest: list[str]) -> int:
    from .curvature import coverage

    model = build_on_meta(options.model, options.task)
    if options.memory:
        text = _memory(model, options.optim_args, options.json)
    else:
        rows = coverage(model)
        text = _as_json(rows, options.summary) if options.json else _as_tables(rows, options.summary)
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # As in `… | head`: nobody reads on, and python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _as_json(rows: list[CoverageRow], only_summary: bool) -> str:
    from .curvature.coverage import summarize

    content = {"kinds": [row._asdict() for row in summarize(rows)]}
    if not only_summary:
        content["parameters"] = [row._asdict() for row in rows]
    return json.dumps(content, indent=2)


def _as_tables(rows: list[CoverageRow], only_summary: bool) -> str:
    from .curvature.coverage import summarize

    shares = _table(
        ("kind", "parameters", "numbers", "share"),
        [(row.kind, f"{row.parameters:,}", f"{row.numbers:,}", f"{row.share:.1%}") for row in summarize(rows)],
        right=(1, 2, 3),
    )
    if only_summary:
        return shares
    parameters = _table(
        ("name", "shape", "kind", "owners"),
        [(row.name, "×".join(map(str, row.shape)) or "scalar", row.kind, ", ".join(row.owners)) for row in rows],
    )
    return f"{parameters}\n\n{shares}"


def _memory(model: nn.Module, optim_args: str | None, as_json: bool) -> str:
    from .memory import SETTINGS, compare_settings

    try:
        rows = compare_settings(model, SETTINGS if optim_args is None else (*SETTINGS, optim_args))
    except (TypeError, ValueError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error
    if as_json:
        return json.dumps([row._asdict() for row in rows], indent=2)
    return _table(
        ("optimizer state", "bytes", "bytes / parameter"),
        [(row.setting, f"{row.bytes:,}", f"{row.per_parameter:.2f}") for row in rows],
        right=(1, 2),
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    lines = [header, *rows]
    widths = [max(len(line[k]) for line in lines) for k in range(len(header))]
    cells = [
        [
            cell.rjust(width) if k in right else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in cells)


def build_on_meta(name: str, task: str) -> nn.Module:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    config = _load_config(name)
    try:
        with torch.device("meta"):
            return _from_config(config, task)
    except Exception as error:  # whatever a model's constructor may raise: it is about this config, not about us
        raise UsageError(f"cannot build {name!r} for the task {task!r}: {_first_line(error)}") from error


def _from_config(config: PretrainedConfig, task: str) -> nn.Module:
    import transformers

    def auto(task: str) -> Any:
        return getattr(transformers, TASKS[task])

    if task != "auto":
        return auto(task).from_config(config)
    for architecture in config.architectures or ():
        if hasattr(transformers, architecture):
            return getattr(transformers, architecture)(config)
    # Bart and the like have a causal LM as well, their decoder alone, which is not what they are for.
    likely = ("seq2seq-lm", "causal-lm") if config.is_encoder_decoder else ("causal-lm",)
    known = (task for task in likely if type(config) in auto(task)._model_mapping)
    return auto(next(known, "base")).from_config(config)


def _load_config(name: str) -> PretrainedConfig:
    from transformers import CONFIG_MAPPING, AutoConfig

    if os.path.exists(name):
        try:
            return AutoConfig.from_pretrained(name, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(f"no usable model config in {name!r}: {_first_line(error)}") from error
    if name in CONFIG_MAPPING:
        return CONFIG_MAPPING[name]()
    close = difflib.get_close_matches(name, CONFIG_MAPPING.keys(), n=1)
    raise UsageError(
        f"unknown model {name!r}: give a folder with a config.json, a config file, or a model type of transformers"
        + (f" (did you mean {close[0]!r}?)" if close else " (such as gpt2, llama, bert, t5, vit)")
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


# report ---------------------------------------------------------------------------------------------------------------


def _add_report(commands: Any) -> None:
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
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace, rest: list[str]) -> int:
    from .report import write_report

    try:
        print(write_report(options.folders, options.output))
    except (OSError, ImportError) as error:
        raise UsageError(str(error)) from error
    return 0
