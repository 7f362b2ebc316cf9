"""Trainers that show and keep what the optimizer knows. The plain Trainer trains just as well."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import Seq2SeqTrainer, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..optimizer import AdaFisher
from . import model_card
from .callbacks import find_adafisher
from .hub import explained

logger = logging.getLogger(__name__)


class AdaFisherTrainer(Trainer):
    """A Trainer that adds four things, and only where the optimizer is an AdaFisher:

    - at the start of training the optimizer gets the handle of the fp16 loss scaler, so that the statistics of the
      ``paper`` and ``reference`` modes are free of the loss scale (``calibrated`` is so anyway);
    - the optimizer's resolved configuration is written as ``adafisher_config.json`` into ``output_dir`` when training
      starts, and into every checkpoint and saved model, and so to the Hub;
    - the model card names the optimizer with every argument, the paper and the tag ``adafisher``; a card that someone
      has edited is kept, and only what is about the optimizer is brought up to date;
    - logs of the training loss carry ``curvature/<kind of layer>/<mean | log_spread | update_ratio>``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(_TrainBegin)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with the curvature's summary beside the training loss."""
        optimizer = find_adafisher(self.optimizer)
        if optimizer is not None and "loss" in logs:
            logs.update(_flat(optimizer.summary()))
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, with the optimizer's configuration beside it."""
        optimizer = find_adafisher(self.optimizer)
        # Before the model, so that a push to the Hub takes it along.
        if optimizer is not None:
            _save_config(optimizer, output_dir or self.args.output_dir, self.args)
        super().save_model(output_dir, _internal_call)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes ``README.md`` as the Trainer does, with what it should say about the optimizer."""
        optimizer = find_adafisher(self.optimizer)
        if optimizer is None or not self.is_world_process_zero():
            return super().create_model_card(*args, **kwargs)
        file = Path(self.args.output_dir or ".") / "README.md"
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        edited = model_card.is_edited(before)
        if edited:
            logger.warning("%s was edited: it is kept, and only its section on the optimizer is written anew", file)
        else:
            with model_card.resolved_arguments(self, optimizer):
                super().create_model_card(*args, **kwargs)
        tags = model_card.tags_of(before)
        return model_card.add_to_card(file, optimizer, self._config_on_hub(), tags=tags, edited=edited)

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Makes the repository as the Trainer does; errors as in :meth:`push_to_hub`."""
        with explained("the repository for this run was not made", "try again"):
            super().init_hf_repo(*args, **kwargs)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Uploads model, config and card as the Trainer does.

        Raises:
            PermissionError: the Hub refused the token.
            OSError: the upload failed otherwise; what is in ``output_dir`` stays, so that it can be repeated.
        """
        folder = self.args.output_dir
        with explained(f"{folder} was not pushed to the Hub, nothing in it is lost", "call push_to_hub() again"):
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        optimizer = find_adafisher(self.optimizer)
        # It pushes the output folder, into which it copies the model's files and nothing else.
        if optimizer is not None:
            _save_config(optimizer, self.args.output_dir, self.args)
        super()._push_from_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        # Pushes of checkpoints run in the background, where nobody sees that they failed.
        jobs = getattr(getattr(self, "push_in_progress", None), "jobs", ())
        errors = [job.exception() for job in jobs if job.done() and job.exception() is not None]
        if errors:
            message = "a checkpoint of %s was not pushed to the Hub (%r), nothing is lost: call trainer.push_to_hub()"
            logger.warning(message, self.args.output_dir, errors[-1])
            self.push_in_progress = None

    def _config_on_hub(self) -> str | None:
        repo, revision = getattr(self, "hub_model_id", None), self.args.hub_revision
        return f"{repo}@{revision}" if repo and revision else repo


class AdaFisherSeq2SeqTrainer(AdaFisherTrainer, Seq2SeqTrainer):
    """A Seq2SeqTrainer with the additions of ``AdaFisherTrainer``."""


class _TrainBegin(TrainerCallback):
    """A callback and not ``create_optimizer``, which subclasses override and which is skipped for a given optimizer."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        prepared = kwargs.get("optimizer")
        optimizer = find_adafisher(prepared)
        if optimizer is not None:
            optimizer.attach_scaler(getattr(prepared, "scaler", None))
            _save_config(optimizer, args.output_dir, args)


def _save_config(optimizer: AdaFisher, folder: str | None, args: TrainingArguments) -> None:
    if folder is not None and args.should_save:
        optimizer.config.save_pretrained(folder)


def _flat(summary: dict[str, dict[str, float]]) -> dict[str, float]:
    return {f"curvature/{kind}/{name}": value for kind, row in summary.items() for name, value in row.items()}
