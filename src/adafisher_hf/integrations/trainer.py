"""Trainers that show and keep what the optimizer knows. The plain Trainer trains just as well."""

from __future__ import annotations

from typing import Any

from transformers import Seq2SeqTrainer, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..optimizer import AdaFisher


class AdaFisherTrainer(Trainer):
    """A Trainer that adds three things, and only where the optimizer is an AdaFisher:

    - at the start of training the optimizer gets the handle of the fp16 loss scaler, so that the statistics of the
      ``paper`` and ``reference`` modes are free of the loss scale (``calibrated`` is so anyway);
    - the optimizer's resolved configuration is written as ``adafisher_config.json`` into ``output_dir`` when training
      starts, and into every checkpoint and saved model;
    - logs of the training loss carry ``curvature/<kind of layer>/<mean | log_spread | update_ratio>``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(_TrainBegin)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with the curvature's summary beside the training loss."""
        optimizer = _find_adafisher(self.optimizer)
        if optimizer is not None and "loss" in logs:
            logs.update(_flat(optimizer.summary()))
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, with the optimizer's configuration beside it."""
        optimizer = _find_adafisher(self.optimizer)
        # Before the model, so that a push to the Hub takes it along.
        if optimizer is not None:
            _save_config(optimizer, output_dir or self.args.output_dir, self.args)
        super().save_model(output_dir, _internal_call)


class AdaFisherSeq2SeqTrainer(AdaFisherTrainer, Seq2SeqTrainer):
    """A Seq2SeqTrainer with the additions of ``AdaFisherTrainer``."""


class _TrainBegin(TrainerCallback):
    """A callback and not ``create_optimizer``, which subclasses override and which is skipped for a given optimizer."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        prepared = kwargs.get("optimizer")
        optimizer = _find_adafisher(prepared)
        if optimizer is not None:
            optimizer.attach_scaler(getattr(prepared, "scaler", None))
            _save_config(optimizer, args.output_dir, args)


def _find_adafisher(optimizer: Any) -> AdaFisher | None:
    """The AdaFisher inside accelerate's wrappers, if it is one."""
    while optimizer is not None and not isinstance(optimizer, AdaFisher):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer


def _save_config(optimizer: AdaFisher, folder: str | None, args: TrainingArguments) -> None:
    if folder is not None and args.should_save:
        optimizer.config.save_pretrained(folder)


def _flat(summary: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"curvature/{kind}/{name}": value for kind, row in summary.items() for name, value in row.items()}
