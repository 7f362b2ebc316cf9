"""Trainers that show and keep what the optimizer knows. The plain Trainer trains just as well."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import Seq2SeqTrainer, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..config.hub import explained
from . import model_card
from .entries import config_of, unwrapped
from .figures import ShowsCurvature, by_kind

logger = logging.getLogger(__name__)


class AdaFisherTrainer(Trainer):
    """A Trainer that adds four things, and only where the optimizer is an AdaFisher or another registered one:

    - at the start of training the optimizer gets the handle of the fp16 loss scaler, so that the statistics of the
      ``paper`` and ``reference`` modes are free of the loss scale (``calibrated`` is so anyway);
    - the optimizer's resolved configuration is written as ``adafisher_config.json`` into ``output_dir`` when training
      starts, and into every checkpoint and saved model, and so to the Hub;
    - the model card names the optimizer with every argument, the paper and the tag ``adafisher``; a card that someone
      has edited is kept, and only what is about the optimizer is brought up to date;
    - logs of the training loss carry ``curvature/<kind of layer>/<mean | log_spread | update_ratio>``.

    What ``register_optimizer`` has added has the file, the tag and the paper of its own, and the figures and the scaler
    if it has ``summary_rows()`` and ``attach_scaler(scaler)``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(_Keeper)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains as the Trainer does, and warns if a checkpoint did not get to the Hub."""
        result = super().train(*args, **kwargs)
        self._warn_of_failed_pushes()
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with the curvature's summary beside the training loss."""
        optimizer = unwrapped(self.optimizer)
        if isinstance(optimizer, ShowsCurvature) and "loss" in logs:
            logs.update(by_kind(optimizer, optimizer.summary_rows()))
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, with the optimizer's configuration beside it."""
        # Before the model, so that a push to the Hub takes it along.
        _save_config(self.optimizer, output_dir or self.args.output_dir, self.args)
        super().save_model(output_dir, _internal_call)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes ``README.md`` as the Trainer does, with what it should say about the optimizer."""
        subject = model_card.subject_of(self.optimizer, self.args)
        if subject is None or not self.is_world_process_zero():
            return super().create_model_card(*args, **kwargs)
        file = Path(self.args.output_dir or ".") / "README.md"
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        edited = model_card.is_edited(before)
        if edited:
            logger.warning("%s was edited: it is kept, and only its section on the optimizer is written anew", file)
        else:
            with model_card.resolved_arguments(self, subject):
                super().create_model_card(*args, **kwargs)
        tags = model_card.tags_of(before)
        return model_card.add_to_card(file, subject, self._config_on_hub(), tags=tags, edited=edited)

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

    def _warn_of_failed_pushes(self) -> None:
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


class _Keeper(TrainerCallback):
    """A callback and not ``create_optimizer``, which subclasses override and which is skipped for a given optimizer."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        prepared = kwargs.get("optimizer")
        optimizer = unwrapped(prepared)
        if hasattr(optimizer, "attach_scaler"):
            optimizer.attach_scaler(getattr(prepared, "scaler", None))
        _save_config(optimizer, args.output_dir, args)

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A checkpoint is pushed from the output folder, into which the Trainer copies the model's files alone.
        _save_config(kwargs.get("optimizer"), args.output_dir, args)


def _save_config(optimizer: Any, folder: str | None, args: TrainingArguments) -> None:
    config = config_of(optimizer, args)
    if config is not None and folder is not None and args.should_save:
        config.save_pretrained(folder)
