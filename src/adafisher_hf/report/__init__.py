"""``adafisher-hf report``: what happened in one or several training runs, on one page.

The way of the data: ``run`` reads the folders, ``findings`` picks what stands out, ``panels`` says which pictures there
are, ``curves`` and ``heatmaps`` draw them, ``tables`` and ``page`` write the HTML.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .run import read_runs

DEFAULT_NAME = "report.html"


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Writes one self-contained HTML page, and its pictures as PNG files into a folder of the same name beside it.

    Args:
        folders: ``output_dir`` of each run.
        output: the page; ``report.html`` in the first folder unless given.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError, NotADirectoryError: a folder that is none; nothing was written.
        ImportError: matplotlib is not installed.
        OSError: the page cannot be written.
    """
    runs = read_runs(folders)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError('the report needs matplotlib: pip install "adafisher-hf[report]"') from None
    from .page import render
    from .theme import LIGHT, save_png

    output = folders[0] / DEFAULT_NAME if output is None else output
    page, panels = render(runs)
    pictures = output.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8", errors="replace")  # JSON may have half a letter
    for panel in panels:
        save_png(panel.draw(LIGHT), pictures / f"{panel.file}.png", panel.title, LIGHT)
    return output
