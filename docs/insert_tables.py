"""Puts the tables that scripts have written into the pages that show them, so that a code host shows them too.

python docs/insert_tables.py

A page says where with ``<!-- from docs/NAME/table.md -->`` and ``<!-- end -->``; what stands between is replaced.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACE = re.compile(r"<!-- from (\S+) -->\n.*?<!-- end -->", re.S)


def main() -> None:
    for page in pages():
        page.write_text(refreshed(page), encoding="utf-8")


def pages() -> list[Path]:
    """All that may have such places."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def refreshed(page: Path) -> str:
    """The page with what the files say now."""

    def insert(place: re.Match[str]) -> str:
        text = (ROOT / place[1]).read_text(encoding="utf-8").strip()
        return f"<!-- from {place[1]} -->\n\n{text}\n\n<!-- end -->"

    return PLACE.sub(insert, page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
