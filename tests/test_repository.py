"""What the Makefile and the documents name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMING = [ROOT / "Makefile", ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


@pytest.mark.parametrize("file", NAMING, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_the_scripts_that_are_named_exist(file):
    named = set(re.findall(r"\b(?:examples|docs|tests)/[\w/]+\.py\b", file.read_text(encoding="utf-8")))
    assert [script for script in sorted(named) if not (ROOT / script).is_file()] == []
