"""The file ``curvature.jsonl`` of a run: one line of JSON a logging step.

``{"step": 10, "parameters": {"model.norm.weight": {"kind": "norm", "mean": 2.4e-08, "log_spread": 0.21,
"update": 0.011, "weight": 11.3}, …}}``, where a number that is not known or not finite is null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.content import parse_json

if TYPE_CHECKING:
    from .summary import ParameterSummary

FILE_NAME = "curvature.jsonl"
DIGITS = 6  # significant ones; the statistics are noisier than that


def append(file: Path, step: int, rows: Iterable[ParameterSummary]) -> None:
    """Adds the line of one step; makes the file where there is none."""
    parameters = {
        row.name: {key: _plain(value) for key, value in row._asdict().items() if key != "name"} for row in rows
    }
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"step": step, "parameters": parameters}, allow_nan=False) + "\n")


def read(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines in the order of their steps, and how many others could not be read.

    Of several lines of one step the last one counts; a line is readable if it has a whole ``step`` and a ``parameters``
    object of objects.

    Raises:
        OSError: the file cannot be opened.
    """
    with file.open(encoding="utf-8", errors="replace") as stream:
        lines = [_parse(line) for line in stream if line.strip()]
    steps = {line["step"]: line for line in lines if line is not None}
    return [steps[step] for step in sorted(steps)], sum(line is None for line in lines)


def forget_after(file: Path, step: int) -> None:
    """Drops the lines of later steps and what is not readable: the run goes on (or begins anew) from this step."""
    if not file.exists():
        return
    kept = [json.dumps(line) + "\n" for line in read(file)[0] if line["step"] <= step]
    beside = file.with_name(file.name + ".tmp")
    beside.write_text("".join(kept), encoding="utf-8")
    os.replace(beside, file)  # a run that is killed here loses no line


def is_step(value: Any) -> bool:
    """Whether it can be the number of a step."""
    return type(value) is int and 0 <= value < 2**53


def _plain(value: str | float) -> str | float | None:
    if isinstance(value, str):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _parse(line: str) -> dict[str, Any] | None:
    try:
        content = parse_json(line)
    except ValueError:
        return None
    if not isinstance(content, dict) or not is_step(content.get("step")):
        return None
    parameters = content.get("parameters")
    usable = isinstance(parameters, dict) and all(isinstance(row, dict) for row in parameters.values())
    return content if usable else None
