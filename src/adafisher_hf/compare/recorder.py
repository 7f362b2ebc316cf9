"""The callback that writes a run's record, and its trainer_state.json for the report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .record import Evaluation, Record

STATE_NAME = "trainer_state.json"


class Recorder(TrainerCallback):
    """Of several trainings in a script the last one counts; what is evaluated before any is left out.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._record: Record | None = None
        # The clock stands still from the end of a step to that of the evaluations that come after it.
        self._start = self._paused = self._last = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins a record, and starts the clock."""
        self._record, self._paused = Record(), 0.0
        self._start = self._last = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Notes the time."""
        if self._record is None:
            return
        if control.should_evaluate and args.device.type != "cpu" and torch.accelerator.is_available():
            torch.accelerator.synchronize()  # an evaluation must not pay for steps that are still in the queue
        self._last = time.perf_counter()
        self._record.steps, self._record.seconds = state.global_step, self._last - self._start - self._paused

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keeps the metrics."""
        self._keep(state, kwargs["metrics"])
        now = time.perf_counter()
        self._paused, self._last = self._paused + now - self._last, now

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any, **kwargs: Any
    ) -> None:
        """Keeps the metrics."""
        self._keep(state, metrics)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Counts what the optimizer keeps."""
        if self._record is None:
            return
        self._record.state_bytes = sum(tensor.nbytes for tensor in _tensors(kwargs["optimizer"].state_dict()["state"]))
        self._record.trained = sum(p.numel() for p in kwargs["model"].parameters() if p.requires_grad)
        self._write(state)

    def _keep(self, state: TrainerState, metrics: Mapping[str, Any]) -> None:
        if self._record is None:
            return
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        self._record.evaluations.append(Evaluation(state.global_step, self._record.seconds, numbers))
        self._write(state)

    def _write(self, state: TrainerState) -> None:
        if self._record is not None and state.is_world_process_zero:
            self._record.write(self._folder)
            state.save_to_json(str(self._folder / STATE_NAME))


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for branch in tree.values():
            yield from _tensors(branch)
    elif isinstance(tree, list | tuple):
        for branch in tree:
            yield from _tensors(branch)
