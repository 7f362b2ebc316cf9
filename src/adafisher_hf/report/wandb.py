"""Runs from the history of Weights & Biases, exported to a file.

``wandb.Api().run(PATH).history(samples=10**6)`` is a data frame: its ``to_csv``, and its ``to_json`` with
``orient="records"`` (also ``lines=True``), are read. The ``.wandb`` files of offline runs are not: wandb 0.31
has no reader of them in Python, only its own program.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .run import is_number
from .tracked import Figure, Tracked, history_of

SUFFIXES = (".csv", ".json", ".jsonl")
STEPS = ("train/global_step", "_step")  # the Trainer's step, else W&B's own count of logs
SECONDS = "_runtime"
OFFLINE = "wandb/*run-*/*.wandb"


def read(file: Path, notes: list[str]) -> Tracked:
    """The run of an export.

    Args:
        file: with one of the SUFFIXES.
        notes: gets one if the file has no history.
    """
    try:
        rows = [row for row in _rows(file) if isinstance(row, dict)]
        tracked = Tracked(history_of(_figures(rows)))
    except (OSError, ValueError, RecursionError):
        tracked = Tracked()
    if not tracked.history:
        notes.append(f"{file.name} is no history of W&B: it has no rows with {' or '.join(STEPS)}")
    return tracked


def note_offline(folder: Path, notes: list[str]) -> None:
    """Says so where W&B has kept a run that cannot be read here."""
    if any(folder.glob(OFFLINE)):
        notes.append(
            "W&B's offline run was not read, only W&B's own program can: wandb sync it, then save "
            "wandb.Api().run(...).history(samples=10**6).to_csv(FILE) and report FILE"
        )


def _rows(file: Path) -> Iterable[Any]:
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".csv":
        return [{key: _number(cell) for key, cell in row.items()} for row in csv.DictReader(text.splitlines())]
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _figures(rows: Iterable[dict[str, Any]]) -> Iterator[Figure]:
    for row in rows:
        step = next((row[key] for key in STEPS if is_number(row.get(key))), None)
        if step is None or not 0 <= step < 2**53:
            continue
        seconds = row.get(SECONDS)
        for tag, value in row.items():
            if is_number(value) and tag not in (*STEPS, SECONDS, "_timestamp"):
                yield Figure(int(step), seconds if is_number(seconds) else None, tag, value)


def _number(cell: Any) -> float | None:
    try:
        return float(cell) if cell else None
    except (TypeError, ValueError):
        return None
