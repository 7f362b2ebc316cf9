"""What people do with the Hub; each runs in a process of its own."""

from __future__ import annotations

import io
import logging
import os
import warnings
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from adafisher_hf import AdaFisherConfig, AdaFisherTrainer
from adafisher_hf.config.adafisher import CONFIG_NAME
from tests.integrations.test_trainer import arguments, data
from tests.models import llama


def push(repo: str, knobs: dict[str, Any] | None = None, **options: Any) -> Any:
    return AdaFisherConfig(**(knobs or {})).push_to_hub(repo, **options)


def load(place: str, **options: Any) -> AdaFisherConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return AdaFisherConfig.from_pretrained(place, **options)


def make_arguments(folder: Path, optim_args: str, **settings: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder), optim="adafisherw", optim_args=optim_args, use_cpu=True, **settings
    )


def load_by_arguments(folder: Path, optim_args: str, **settings: Any) -> dict[str, Any]:
    """The optimizer's arguments as the Trainer gets them."""
    args = make_arguments(folder, optim_args, **settings)
    return AdaFisherTrainer(llama(), args).get_optimizer_cls_and_kwargs(args, llama())[1] | {"network": None}


def train(folder: Path, *, finish: bool = False, **settings: Any) -> tuple[AdaFisherConfig, dict[str, float]]:
    """Trains a tiny model.

    Args:
        finish: call ``push_to_hub`` when it is done.

    Returns:
        The optimizer's config, and the sum of each weight.
    """
    trainer = AdaFisherTrainer(llama(), arguments(folder, **settings), train_dataset=data())
    trainer.train()
    if finish:
        trainer.push_to_hub()
    weights = {name: weight.sum().item() for name, weight in trainer.model.named_parameters()}
    return trainer.optimizer.optimizer.config, weights


def push_twice(folder: Path, **settings: Any) -> tuple[str, Any]:
    """Trains, pushes, and pushes again after a failure.

    Returns:
        The message of the failure, and the answer to the second push.
    """
    trainer = AdaFisherTrainer(llama(), arguments(folder, **settings), train_dataset=data())
    trainer.train()
    try:
        trainer.push_to_hub()
    except OSError as error:
        return f"{type(error).__name__}: {error}", trainer.push_to_hub()
    return "", None


def train_and_listen(folder: Path, **settings: Any) -> str:
    """Trains a tiny model and returns what adafisher_hf warned of."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger("adafisher_hf").addHandler(handler)
    try:
        train(folder, **settings)
    finally:
        logging.getLogger("adafisher_hf").removeHandler(handler)
    return stream.getvalue()


def train_losing_the_config(folder: Path, **settings: Any) -> None:
    """Trains a tiny model while something deletes the config from the output folder."""

    class Broom(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            (folder / CONFIG_NAME).unlink(missing_ok=True)

    trainer = AdaFisherTrainer(llama(), arguments(folder, **settings), train_dataset=data(), callbacks=[Broom])
    trainer.train()


def run_card(code: str) -> dict[str, Any]:
    """Runs the code of a model card and returns the arguments of the optimizer that it asks for."""
    names: dict[str, Any] = {}
    exec(code, names)
    args = names["args"]
    return AdaFisherTrainer(llama(), args).get_optimizer_cls_and_kwargs(args, llama())[1] | {"network": None}


def run_page(folder: Path, codes: list[str]) -> dict[str, Any]:
    """Runs the blocks of a page one after the other in a folder."""
    from tests.docs.test_code_blocks import prepared

    before, names = Path.cwd(), prepared()
    os.chdir(folder)
    try:
        for code in codes:
            exec(code, names)
    finally:
        os.chdir(before)
    return {"optim_args": names["args"].optim_args, "config": names["config"]}
