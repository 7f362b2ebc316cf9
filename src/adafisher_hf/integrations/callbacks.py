"""CurvatureCallback: the curvature of every parameter, where the run is logged and in a file of its own."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers.trainer_callback import (
    ExportableState,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from ..insight import log as curvature_log
from ..insight.coverage import CoverageRow
from ..insight.coverage import summarize as shares
from ..insight.summary import ParameterSummary
from .entries import config_of, entry_of_optimizer, unwrapped
from .figures import ShowsCurvature, by_kind, by_parameter, finite, logged
from .live_state import LiveState

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

logger = logging.getLogger(__name__)

COVERAGE_NAME = "coverage.json"


class CurvatureCallback(TrainerCallback, ExportableState):
    """Per-parameter curvature at the logging steps of any Trainer whose optimizer tells it, as AdaFisher does.

    Beside the training loss, whatever the Trainer reports to (``report_to``) gets

    - ``curvature/<kind of layer>/<mean | log_spread | update_ratio>``, also in the console and ``trainer_state.json``;
    - ``curvature/<parameter>/<mean | log_spread | update_ratio>``, hundreds of series: only there.

    ``output_dir`` gets ``curvature.jsonl`` (see ``adafisher_hf.insight.log``), ``coverage.json`` and the optimizer's
    config, ``adafisher_config.json``: what ``adafisher-hf report`` reads. A run that resumes from step N drops the
    lines of later steps. With another optimizer there is one warning, and of these files only the config of a
    registered one.

    With any optimizer ``trainer_state.json`` in ``output_dir`` is kept up to date, says which optimizer it is, and has
    the time of every training log as ``seconds``.

    Attributes:
        optimizer: its name, and the ``optim_args`` it was made with; empty before the training.
    """

    def __init__(self) -> None:
        self.optimizer = ""
        self._live: LiveState | None = None
        self._optimizer: ShowsCurvature | None = None
        self._rows: list[ParameterSummary] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Writes state, config and coverage, and drops from ``curvature.jsonl`` what this run is about to do again."""
        optimizer = unwrapped(kwargs.get("optimizer"))
        self.optimizer, self._live = _shown(optimizer, args), LiveState(state)
        self._optimizer, self._rows = optimizer if isinstance(optimizer, ShowsCurvature) else None, []
        if not state.is_world_process_zero:
            return
        if self._optimizer is None:
            _warn_of(optimizer)
        if args.output_dir is not None:
            callbacks = cast("dict[str, Any]", state.stateful_callbacks)  # what the Trainer makes of its list
            callbacks[type(self).__name__] = self.state()
            self._live.write(state, Path(args.output_dir), always=True)
            self._begin_files(Path(args.output_dir), args, state.global_step, optimizer)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Appends the line of this step, after what reports and before what prints."""
        if self._live is not None:
            self._live.on_log(state)
        self._log_curvature(args, state, logs)
        if self._live is not None and state.is_world_process_zero and args.output_dir is not None:
            self._live.write(state, Path(args.output_dir), always="loss" not in (logs or {}))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lets go of the optimizer."""
        self._optimizer = None

    def state(self) -> dict[str, Any]:
        """What ``trainer_state.json`` keeps of it."""
        return {"args": {}, "attributes": {"optimizer": self.optimizer}}

    def _log_curvature(self, args: TrainingArguments, state: TrainerState, logs: dict[str, Any] | None) -> None:
        if self._optimizer is None or logs is None or "loss" not in logs:
            return
        rows, self._rows = self._rows or self._optimizer.summary_rows(), []  # none: adafisher_hf is not registered
        if state.is_world_process_zero and args.output_dir is not None:
            curvature_log.append(Path(args.output_dir) / curvature_log.FILE_NAME, state.global_step, rows)
        for key in by_parameter(rows):
            logs.pop(key, None)
            state.log_history[-1].pop(key, None)

    def figures(self) -> dict[str, float]:
        """What is reported now: by kind of layer and by parameter, finite numbers only."""
        if self._optimizer is None:
            return {}
        self._rows = self._optimizer.summary_rows()
        return finite({**by_kind(self._optimizer, self._rows), **by_parameter(self._rows)})

    def _begin_files(self, folder: Path, args: TrainingArguments, step: int, optimizer: Any) -> None:
        config = config_of(optimizer, args)
        if config is not None:
            config.save_pretrained(folder)
        if self._optimizer is None:
            return
        if hasattr(optimizer, "coverage_rows"):
            _save_coverage(optimizer.coverage_rows(), folder / COVERAGE_NAME)
        curvature_log.forget_after(folder / curvature_log.FILE_NAME, step)


def with_curvature(original: Callable) -> Callable:
    """Wraps ``Trainer.log``: the optimizer's own figures, and the curvature if a callback asks for it.

    The callback's own ``on_log`` comes when the reporting ones have been served.
    """

    @functools.wraps(original)
    def log(self: Trainer, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(logged(unwrapped(self.optimizer)))
        handler = self.callback_handler
        callback = next((found for found in handler.callbacks if isinstance(found, CurvatureCallback)), None)
        if callback is not None and "loss" in logs:
            # The console last, where the callback has taken hundreds of figures out again.
            handler.callbacks.sort(key=lambda other: isinstance(other, PrinterCallback | ProgressCallback))
            logs.update(callback.figures())
        original(self, logs, start_time)

    return log


def _shown(optimizer: Any, args: TrainingArguments) -> str:
    entry = entry_of_optimizer(optimizer, args)
    name = type(optimizer).__name__ if entry is None else entry.name
    return " ".join(filter(None, (name, args.optim_args)))


def _warn_of(optimizer: Any) -> None:
    name = type(optimizer).__name__
    if entry_of_optimizer(optimizer) is None:
        message = (
            "CurvatureCallback has no curvature to show: the optimizer is %s, not an AdaFisher (optim='adafisherw')"
        )
    else:
        message = "CurvatureCallback writes the config and no curvature: %s has no summary_rows()"
    logger.warning(message, name)


def _save_coverage(rows: Iterable[CoverageRow], file: Path) -> None:
    rows = list(rows)
    content = {"kinds": [row._asdict() for row in shares(rows)], "parameters": [row._asdict() for row in rows]}
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
