"""Runs from TensorBoard's event files, with TensorBoard's own reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tracked import Figure, Tracked, history_of

if TYPE_CHECKING:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PATTERN = "events.out.tfevents.*"
PLACES = ("", "runs/*/")  # the folder itself, and where the Trainer puts them in its output_dir
ARGS = "args/text_summary"  # TrainingArguments, as the Trainer's callback writes them


def read(folder: Path, notes: list[str]) -> Tracked:
    """The run of a folder's event files; nothing where there is none.

    Several files are one run that was resumed: what a later one has counts from its first step on, and its time goes on
    where that of the earlier ones ended.

    Args:
        folder: of event files, or the ``output_dir`` of a Trainer.
        notes: gets one if the files cannot be read.
    """
    files = [file for place in PLACES for file in folder.glob(place + PATTERN)]
    if not files:
        return Tracked()
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        notes.append("TensorBoard's event files were not read: pip install tensorboard")
        return Tracked()
    sessions = [EventAccumulator(str(file), {"scalars": 0, "tensors": 0}).Reload() for file in files]
    figures: list[Figure] = []
    for session in sorted((s for s in sessions if s.Tags()["scalars"]), key=_begin):
        figures = _continued(figures, list(_figures(session)))
    args = next(filter(None, map(_args, sessions)), {})
    return Tracked(history_of(figures), args)


def _begin(session: EventAccumulator) -> float:
    return session.FirstEventTimestamp()


def _figures(session: EventAccumulator) -> Iterator[Figure]:
    begin = _begin(session)
    for tag in session.Tags()["scalars"]:
        for event in session.Scalars(tag):
            yield Figure(event.step, event.wall_time - begin, tag, event.value)


def _continued(before: list[Figure], after: list[Figure]) -> list[Figure]:
    first = min(figure.step for figure in after)
    kept = [figure for figure in before if figure.step <= first]
    passed = max((figure.seconds or 0.0 for figure in kept), default=0.0)
    return kept + [figure._replace(seconds=passed + (figure.seconds or 0.0)) for figure in after]


def _args(session: EventAccumulator) -> dict[str, Any]:
    if ARGS not in session.Tags()["tensors"]:
        return {}
    content = json.loads(session.Tensors(ARGS)[0].tensor_proto.string_val[0])
    return content if isinstance(content, dict) else {}
