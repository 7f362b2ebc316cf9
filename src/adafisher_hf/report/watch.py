"""A report that is written again and again while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .files import page_of, write_page, write_pictures
from .folders import read_runs
from .page import Live
from .progress import finished, seconds_left
from .run import Run
from .tables import duration
from .tracked import last_step


def watch(paths: Sequence[Path], output: Path | None, every: float, say: Callable[[str], object] = print) -> Path:
    """Writes the page every few seconds, with how far each run is, until all have ended or Ctrl-C; then the pictures.

    Args:
        paths: as of ``write_report``.
        output: as of ``write_report``.
        every: seconds from one page to the next; the page in a browser follows.
        say: gets one line a page.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError, NotADirectoryError, ImportError, OSError: as ``write_report``.
    """
    output = page_of(paths, output)
    try:
        while not all(map(finished, runs := read_runs(paths))):
            lines = [_line(run) for run in runs]
            write_page(runs, output, Live(lines, every))
            say("; ".join(lines))
            time.sleep(every)
    except KeyboardInterrupt:
        pass
    write_pictures(write_page(read_runs(paths), output), output)
    return output


def _line(run: Run) -> str:
    step, most, left = max(last_step(run.history), 0), run.state.get("max_steps"), seconds_left(run)
    of = f" of {most}" if most else ""
    rest = "ended" if finished(run) else "time left not known" if left is None else f"about {duration(left)} left"
    return f"{run.label}: step {step}{of}, {rest}"
