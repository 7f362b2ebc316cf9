"""One short line a log on the console; trainer_state.json and whatever the run reports to get every figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments

WIDTH = 120
MORE = " …"
SHORT = {"learning_rate": "lr", "grad_norm": "grad"}
NOT_SHOWN = ("epoch", "total_flos")  # the line begins with the step
CURVATURE, MEAN = "curvature/", "/mean"


def shorten(trainer: Trainer) -> None:
    """Makes what a Trainer prints short; what shows no lines (a notebook's table) stays."""
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(ShortProgress)
    if trainer.pop_callback(PrinterCallback) is not None:
        trainer.add_callback(ShortPrinter)


class ShortProgress(ProgressCallback):
    """The progress bar, with short lines above it."""

    training_bar: Any

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            self.training_bar.write(line(logs, f"{state.global_step}/{state.max_steps}"))


class ShortPrinter(PrinterCallback):
    """Short lines without a progress bar (``--disable_tqdm``)."""

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if state.is_local_process_zero:
            print(line(logs, f"{state.global_step}/{state.max_steps}"))


def line(logs: Mapping[str, Any], step: str) -> str:
    """As many figures of a log as fit into ``WIDTH`` characters; of the curvature the mean of each kind of layer."""
    written = step
    for piece in (*_figures(logs), *_means(logs)):
        if len(written + piece) > WIDTH - len(MORE):
            return written + MORE
        written += piece
    return written


def _figures(logs: Mapping[str, Any]) -> Iterator[str]:
    for name, value in logs.items():
        if not name.startswith(CURVATURE) and name not in NOT_SHOWN:
            yield f"  {SHORT.get(name, name)} {value:.4g}" if isinstance(value, float) else f"  {name} {value}"


def _means(logs: Mapping[str, Any]) -> Iterator[str]:
    found = [name for name in logs if name.startswith(CURVATURE) and name.endswith(MEAN)]
    for i, name in enumerate(found):
        kind = name.removeprefix(CURVATURE).removesuffix(MEAN)
        yield f"{',' if i else '  curvature'} {kind} {logs[name]:.2g}"
