"""How much time a comparison may take."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Collection

from .errors import CompareError

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
WRITTEN = re.compile(rf"(?:\d+(?:\.\d+)?[{''.join(UNITS)}])+")


class Budget:
    """A time that runs from now on.

    Args:
        seconds: None: without end.
        clock: tells seconds.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic):
        self._seconds, self._clock, self._start = seconds, clock, clock()

    def has_room(self, seconds: Collection[float]) -> bool:
        """Whether one more run would end in time, if it takes as long as the others did on average.

        Args:
            seconds: of the runs that are known; without one nobody knows, and it may be tried.
        """
        spent = self._clock() - self._start
        return self._seconds is None or spent + (statistics.mean(seconds) if seconds else 0) <= self._seconds


def seconds_of(text: str) -> float:
    """Seconds of a time such as ``90s``, ``30m``, ``1.5h`` or ``1h30m``.

    Raises:
        CompareError: another writing, or none at all.
    """
    parts = re.findall(r"([\d.]+)(\D)", text) if WRITTEN.fullmatch(text) else []
    seconds = sum(float(number) * UNITS[unit] for number, unit in parts)
    if not seconds:
        raise CompareError(f"--budget must be a time such as 30m, 1.5h or 1h30m, got {text!r}")
    return seconds
