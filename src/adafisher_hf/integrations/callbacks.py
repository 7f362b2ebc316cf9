"""CurvatureCallback: the curvature of every parameter, where the run is logged and in a file of its own."""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from .. import curvature_log
from ..curvature import CoverageRow
from ..curvature.coverage import summarize as shares
from ..optimizer import AdaFisher
from ..summary import ParameterSummary, by_parameter, summarize_rows

logger = logging.getLogger(__name__)

COVERAGE_NAME = "coverage.json"


class CurvatureCallback(TrainerCallback):
    """Per-parameter curvature at the logging steps of any Trainer whose optimizer is an AdaFisher.

    Beside the training loss, whatever the Trainer reports to (``report_to``) gets

    - ``curvature/<kind of layer>/<mean | log_spread | update_ratio>``, also in the console and ``trainer_state.json``;
    - ``curvature/<parameter>/<mean | log_spread | update_ratio>``, hundreds of series: only there.

    ``output_dir`` gets ``curvature.jsonl`` (see ``adafisher_hf.curvature_log``), ``coverage.json`` and
    ``adafisher_config.json``: with ``trainer_state.json``, what ``adafisher-hf report`` reads. A run that resumes from
    step N drops the lines of later steps. With another optimizer there is one warning and nothing else.
    """

    def __init__(self) -> None:
        self._optimizer: AdaFisher | None = None
        self._rows: list[ParameterSummary] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Writes config and coverage, and drops from ``curvature.jsonl`` what this run is about to do again."""
        self._optimizer, self._rows = find_adafisher(kwargs.get("optimizer")), []
        if not state.is_world_process_zero:
            return
        if self._optimizer is None:
            logger.warning(
                "CurvatureCallback does nothing: the optimizer is %s, not an AdaFisher (optim='adafisherw')",
                _innermost_name(kwargs.get("optimizer")),
            )
        elif args.output_dir is not None:
            folder = Path(args.output_dir)
            self._optimizer.config.save_pretrained(folder)
            _save_coverage(self._optimizer, folder / COVERAGE_NAME)
            curvature_log.forget_after(folder / curvature_log.FILE_NAME, state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Appends the line of this step, after what reports and before what prints."""
        if self._optimizer is None or logs is None or "loss" not in logs:
            return
        rows, self._rows = self._rows or by_parameter(self._optimizer), []  # none: adafisher_hf is not registered
        if state.is_world_process_zero and args.output_dir is not None:
            curvature_log.append(Path(args.output_dir) / curvature_log.FILE_NAME, state.global_step, rows)
        for key in _by_parameter_figures(rows):
            logs.pop(key, None)
            state.log_history[-1].pop(key, None)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lets go of the optimizer."""
        self._optimizer = None

    def figures(self) -> dict[str, float]:
        """What is reported now: by kind of layer and by parameter, finite numbers only."""
        if self._optimizer is None:
            return {}
        self._rows = by_parameter(self._optimizer)
        kinds = summarize_rows(self._optimizer, self._rows)
        by_kind = {f"curvature/{kind}/{name}": value for kind, row in kinds.items() for name, value in row.items()}
        return _finite({**by_kind, **_by_parameter_figures(self._rows)})


def with_curvature(original: Callable) -> Callable:
    """Wraps ``Trainer.log``: a callback's own ``on_log`` comes when the reporting ones have been served."""

    @functools.wraps(original)
    def log(self: Trainer, logs: dict[str, float], start_time: float | None = None) -> None:
        handler = self.callback_handler
        callback = next((found for found in handler.callbacks if isinstance(found, CurvatureCallback)), None)
        if callback is not None and "loss" in logs:
            # The console last, where the callback has taken hundreds of figures out again.
            handler.callbacks.sort(key=lambda other: isinstance(other, PrinterCallback | ProgressCallback))
            logs.update(callback.figures())
        original(self, logs, start_time)

    return log


def _by_parameter_figures(rows: Iterable[ParameterSummary]) -> dict[str, float]:
    figures = {}
    for row in rows:
        ratio = row.update / row.weight if row.weight else math.nan
        for name, value in (("mean", row.mean), ("log_spread", row.log_spread), ("update_ratio", ratio)):
            figures[f"curvature/{row.name}/{name}"] = value
    return figures


def _finite(figures: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in figures.items() if math.isfinite(value)}


def _save_coverage(optimizer: AdaFisher, file: Path) -> None:
    order = {name: i for i, (name, _) in enumerate(optimizer._blocks.model.named_parameters())}
    rows = [
        CoverageRow(block.name, tuple(block.parameter.shape), block.kind, tuple(o.module_name for o in block.owners))
        for block in sorted(optimizer._blocks, key=lambda block: order.get(block.name, len(order)))
    ]
    content = {"kinds": [row._asdict() for row in shares(rows)], "parameters": [row._asdict() for row in rows]}
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def find_adafisher(optimizer: Any) -> AdaFisher | None:
    """The AdaFisher inside accelerate's wrappers, if it is one."""
    found = _innermost(optimizer)
    return found if isinstance(found, AdaFisher) else None


def _innermost_name(optimizer: Any) -> str:
    return type(_innermost(optimizer)).__name__


def _innermost(optimizer: Any) -> Any:
    """The optimizer inside accelerate's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer
