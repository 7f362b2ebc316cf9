"""The files of a report: the page, and its pictures as PNG files into a folder of the same name beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from .folders import read_runs
from .page import Live, render
from .panels import Panel
from .run import Run
from .vega import LIGHT, png

DEFAULT_NAME = "report.html"


def write_report(paths: Sequence[Path], output: Path | None = None) -> Path:
    """Writes one self-contained HTML page and its pictures.

    Args:
        paths: of each run its ``output_dir``, a folder of TensorBoard's event files, or an export of W&B's history.
        output: the page; ``report.html`` in the first folder unless given.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError, NotADirectoryError: a folder that is none; nothing was written.
        ImportError: vl-convert is not installed.
        OSError: the page cannot be written.
    """
    output = page_of(paths, output)
    write_pictures(write_page(read_runs(paths), output), output)
    return output


def page_of(paths: Sequence[Path], output: Path | None) -> Path:
    """Where the page goes."""
    first = paths[0]
    return output or (first if first.is_dir() else first.parent) / DEFAULT_NAME


def write_page(runs: Sequence[Run], output: Path, live: Live | None = None) -> list[Panel]:
    """Writes the page at once, so that nobody reads half of it, and returns what is on it.

    Raises:
        ImportError: vl-convert is not installed.
        OSError: the page cannot be written.
    """
    try:
        import vl_convert  # noqa: F401
    except ImportError:
        raise ImportError('the report needs vl-convert: pip install "adafisher-hf[report]"') from None
    page, panels = render(runs, live)
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(output.name + ".tmp")
    beside.write_text(page, encoding="utf-8", errors="replace")  # JSON may have half a letter
    os.replace(beside, output)
    return panels


def write_pictures(panels: Sequence[Panel], output: Path) -> None:
    """Writes the PNG files of a page.

    Raises:
        OSError: they cannot be written.
    """
    pictures = output.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    for panel in panels:
        (pictures / f"{panel.file}.png").write_bytes(png(panel.spec, panel.title, LIGHT))
