"""One bar: what is done, how long the rest will take, and what runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm

from .plan import Job
from .run import Run

# What runs stands last: where a terminal is too narrow it is what can be missed.
FORMAT = "{n_fmt}/{total_fmt} runs |{bar:10}| {elapsed}, {remaining} left: {desc}"


class Progress:
    """A bar of runs on stderr.

    Args:
        total: how many there are to be.
    """

    def __init__(self, total: int):
        # The mean of all: runs at the same time end in twos and threes, which says nothing of their pace.
        self._bar = tqdm(total=total, bar_format=FORMAT, smoothing=0, dynamic_ncols=True, file=sys.stderr)
        self._seen: set[Job] = set()
        self._started: set[Job] = set()

    def tell(self, running: list[Job], runs: Mapping[Job, Run]) -> None:
        """Brings it up to date, with a line for every run that has failed."""
        self._started.update(running)
        for job in [job for job in runs if job not in self._seen]:
            self._seen.add(job)
            if job not in self._started:
                self._bar.initial += 1  # it was there before, and took no time
            self._bar.update()
            if (error := runs[job].error) is not None:
                self._bar.write(f"failed: {job}: {error} ({runs[job].log})", file=sys.stderr)
        self._bar.set_description_str("; ".join(map(str, running)), refresh=sys.stderr.isatty())

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.set_description_str("ended" if error is None else "stopped")
        self._bar.close()
