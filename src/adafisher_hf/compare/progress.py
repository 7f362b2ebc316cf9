"""One bar: what runs, what is done, and how long the rest will take."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm

from .plan import Job
from .run import Run


class Progress:
    """A bar of runs on stderr.

    Args:
        total: how many there are to be.
    """

    def __init__(self, total: int):
        self._bar = tqdm(total=total, unit="run", dynamic_ncols=True, file=sys.stderr)
        self._seen: set[Job] = set()

    def tell(self, running: list[Job], runs: Mapping[Job, Run]) -> None:
        """Brings it up to date, with a line for every run that has failed."""
        for job in [job for job in runs if job not in self._seen]:
            self._seen.add(job)
            self._bar.update()
            if (error := runs[job].error) is not None:
                self._bar.write(f"failed: {job}: {error} ({runs[job].log})", file=sys.stderr)
        self._bar.set_description("; ".join(map(str, running)), refresh=sys.stderr.isatty())

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.set_description("done" if error is None else "stopped")
        self._bar.close()
