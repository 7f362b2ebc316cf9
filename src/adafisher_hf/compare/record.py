"""What a run has measured, as the file ``record.json`` in its folder."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..config.content import parse_json, read_text

FILE_NAME = "record.json"


class Evaluation(NamedTuple):
    """An evaluation or a prediction.

    Attributes:
        step: of the training when it was made.
        seconds: of training until then.
        metrics: by name, with their prefix.
    """

    step: int
    seconds: float
    metrics: dict[str, float]


class Point(NamedTuple):
    """A metric on its way."""

    step: int
    seconds: float
    value: float


@dataclass
class Record:
    """A training's.

    Attributes:
        steps: that were made.
        seconds: that they took, without evaluations.
        evaluations: in their order.
        state_bytes: of the optimizer's state; None: training has not come to its end.
        trained: numbers of the model that are trained.
    """

    steps: int = 0
    seconds: float = 0.0
    evaluations: list[Evaluation] = field(default_factory=list)
    state_bytes: int | None = None
    trained: int = 0

    def curve(self, name: str) -> list[Point]:
        """A metric by step; of several evaluations at a step the last one counts."""
        return sorted({point.step: point for point in self._points(name)}.values())

    def last(self, name: str) -> float | None:
        """The last value of a metric; None: there is none."""
        return next((point.value for point in reversed(list(self._points(name)))), None)

    def names(self) -> list[str]:
        """Of all metrics."""
        return list(dict.fromkeys(name for evaluation in self.evaluations for name in evaluation.metrics))

    @property
    def state_bytes_per_parameter(self) -> float:
        """Of what is trained; nan where that is nothing."""
        return (self.state_bytes or 0) / self.trained if self.trained else math.nan

    def write(self, folder: Path) -> None:
        """Writes the file; whoever reads it meanwhile finds the last one whole."""
        beside = folder / f"{FILE_NAME}.tmp"
        beside.write_text(json.dumps(asdict(self)), encoding="utf-8")
        os.replace(beside, folder / FILE_NAME)

    def _points(self, name: str) -> Iterator[Point]:
        for step, seconds, metrics in self.evaluations:
            if name in metrics:
                yield Point(step, seconds, metrics[name])


def read_record(folder: Path) -> Record | None:
    """The record of a run whose training has come to its end; None: there is none."""
    try:
        content = parse_json(read_text(folder / FILE_NAME))
        record = Record(**{**content, "evaluations": [Evaluation(*entry) for entry in content["evaluations"]]})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record if record.state_bytes is not None else None
