"""What the Makefile and the documents name is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMING = [ROOT / "Makefile", ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


@pytest.mark.parametrize("file", NAMING, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_the_scripts_that_are_named_exist(file):
    named = set(re.findall(r"\b(?:examples|docs|tests)/[\w/]+\.py\b", file.read_text(encoding="utf-8")))
    assert [script for script in sorted(named) if not (ROOT / script).is_file()] == []


def test_every_deliberate_mistake_has_its_place():
    """The lines of tests/data/mutants.json stand in the package, once; make mutants is slow, this is not."""
    mutants = json.loads((ROOT / "tests/data/mutants.json").read_text(encoding="utf-8"))
    package = ROOT / "src/adafisher_hf"
    lost = [m["what"] for m in mutants if (package / m["file"]).read_text(encoding="utf-8").count(m["old"]) != 1]
    assert len(mutants) > 40 and lost == []
    named = {test for m in mutants for test in m["first"].split()}
    assert [test for test in sorted(named) if not (ROOT / test).exists()] == []
