"""What is known of a run that has ended."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from ..config.content import parse_json, read_text
from .record import Record, read_record

FILE_NAME, LOG_NAME = "run.json", "log.txt"
LONGEST = 300  # characters of an error
TRACEBACK = "Traceback (most recent call last):"
NO_TRAINING = "it ended without a training with transformers' Trainer (does it need --do_train?)"


@dataclass(frozen=True)
class Run:
    """A run, well or not.

    Attributes:
        folder: with its log and its record.
        seconds: of its process, from start to end.
        peak_bytes: the largest resident size of its process.
        record: empty where it failed.
        error: why it is of no use; None: it is.
        at_once: how many could run beside each other, itself among them: they share the machine, and its clock.
    """

    folder: Path
    seconds: float
    peak_bytes: int
    record: Record
    error: str | None = None
    at_once: int = 1

    @property
    def log(self) -> Path:
        return self.folder / LOG_NAME


def ended(folder: Path, status: int, seconds: float, peak_bytes: int, at_once: int) -> Run:
    """The run whose process has just ended.

    Args:
        folder: of the run.
        status: of the process; negative: the signal that ended it.
        seconds: see :class:`Run`.
        peak_bytes: see :class:`Run`.
        at_once: see :class:`Run`.
    """
    record = read_record(folder)
    error = _error(folder / LOG_NAME, status) if status else NO_TRAINING if record is None else None
    return Run(folder, seconds, peak_bytes, Record() if record is None or error else record, error, at_once)


def read_run(folder: Path) -> Run | None:
    """A run of an earlier time that has ended well; None: there is none."""
    try:
        content = parse_json(read_text(folder / FILE_NAME))
        seconds, peak_bytes, at_once = float(content["seconds"]), int(content["peak_bytes"]), int(content["at_once"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    record = read_record(folder)
    return None if record is None else Run(folder, seconds, peak_bytes, record, at_once=at_once)


def last_error(log: str) -> str:
    """The line of a log that says what went wrong: that of the last exception, else the last line."""
    behind = log.rpartition(TRACEBACK)[2].splitlines()
    raised = (line for line in behind if line.strip() and not line.startswith((" ", "\t")))
    lines = [line for line in log.splitlines() if line.strip()]
    line = next(raised, "") if TRACEBACK in log else lines[-1] if lines else ""
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


def _error(log: Path, status: int) -> str:
    if status < 0:
        return f"ended by {signal.Signals(-status).name}" + (" (out of memory?)" if -status == signal.SIGKILL else "")
    said = last_error(re.sub(r".*\r", "", log.read_text(encoding="utf-8", errors="replace")))
    return said or f"ended with status {status} and said nothing"
