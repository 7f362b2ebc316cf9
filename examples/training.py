"""What the scripts have in common around a Trainer: flags, training, evaluation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from transformers import HfArgumentParser, Trainer, TrainingArguments

from adafisher_hf import CurvatureCallback
from checkpoints import starting_point
from comparison import CompareArguments
from console import shorten
from errors import InputError

ADAFISHERS = ("adafisher", "adafisherw")
INTERRUPTED = 130  # the exit status of a program that Ctrl-C ended


def parse(
    argv: Sequence[str] | None, description: str | None, *kinds: type, training: type = TrainingArguments
) -> tuple[Any, ...]:
    """Reads the flags, or a JSON file with them if that is the only argument.

    Returns:
        What was read for each of ``kinds``, then CompareArguments and TrainingArguments, whose
        ``resume_from_checkpoint`` is the folder to go on from or None.

    Raises:
        InputError: a value that cannot be, or flags that do not go together.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = HfArgumentParser((*kinds, CompareArguments, training), description=str(description).splitlines()[0])  # type: ignore[arg-type]
    try:
        if len(argv) == 1 and argv[0].endswith(".json"):
            parsed = parser.parse_json_file(argv[0])
        else:
            parsed = parser.parse_args_into_dataclasses(argv)
    except (OSError, TypeError, ValueError) as error:
        raise InputError(str(error)) from error
    *_, comparison, args = parsed
    _check(comparison, args)
    args.resume_from_checkpoint = _checkpoint(comparison, args) if args.do_train else None
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False  # torch would warn at every loader that there is nothing to pin for
    return parsed


def train_and_evaluate(trainer: Trainer) -> dict[str, float]:
    """Does what --do_train and --do_eval ask for and returns all metrics."""
    shorten(trainer)
    metrics: dict[str, float] = {}
    if trainer.args.do_train:
        metrics |= _train(trainer)
    if trainer.args.do_eval:
        metrics |= _evaluate(trainer)
    return metrics


def _check(comparison: CompareArguments, args: TrainingArguments) -> None:
    if not (args.do_train or args.do_eval):
        raise InputError("nothing to do: give --do_train, --do_eval or both")
    if comparison.compare is None:
        return
    if not (args.do_train and args.do_eval):
        raise InputError("--compare needs both --do_train and --do_eval")
    if args.push_to_hub:
        raise InputError("--compare trains two models: train the one that is meant alone for --push_to_hub")


def _checkpoint(comparison: CompareArguments, args: TrainingArguments) -> str | None:
    found = starting_point(args)
    if found is not None and comparison.compare is not None:
        raise InputError(
            f"--compare is about whole trainings, and {found} is a part of one: "
            "give another --output_dir, or --resume_from_checkpoint false"
        )
    if found is not None and args.should_log:
        print(f"going on from {found} (--resume_from_checkpoint false starts anew)")
    return found


def _train(trainer: Trainer) -> dict[str, float]:
    """Trains and saves the model, the metrics and the Trainer's state in the output folder."""
    if trainer.args.optim in ADAFISHERS:
        trainer.add_callback(CurvatureCallback)  # what `adafisher-hf report` shows
    try:
        result = trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command again goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    return result.metrics


def _evaluate(trainer: Trainer) -> dict[str, float]:
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    return metrics
