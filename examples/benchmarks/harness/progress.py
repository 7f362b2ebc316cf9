"""A line for every finished run, with the time that is left."""

from __future__ import annotations

import time
from datetime import timedelta

from .jobs import Job
from .runner import Run


class Progress:
    """Counts steps, as runs are of different lengths.

    Args:
        steps: about how many there are to make; what is known from earlier is taken off as it turns up.
    """

    def __init__(self, title: str, steps: int):
        self.title, self.steps = title, steps
        self._start, self._done = time.monotonic(), 0

    def finished(self, job: Job, run: Run) -> None:
        self._done += job.steps
        pace = (time.monotonic() - self._start) / self._done
        left = timedelta(seconds=round(pace * max(0, self.steps - self._done)))
        print(f"{self.title}, about {left} left: {job}  loss {run.loss:.4f}", flush=True)
