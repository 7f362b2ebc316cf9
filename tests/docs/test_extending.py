"""docs/extending.md, carried out: its files and its edit go into a copy of the package, its other blocks run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

from tests.docs.test_code_blocks import IN_A_COPY, ROOT, code_blocks

TITLE = re.compile(r'title="(?P<path>[^"]+)"')


def test_every_step_of_extending(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    blocks = [block for block in code_blocks(ROOT / "docs" / IN_A_COPY) if block.language in ("python", "diff")]
    script = ""
    for block in blocks:
        title = TITLE.search(block.title)
        if block.language == "diff":
            insert_lines(tmp_path / title["path"], block.code)
        elif title:
            (tmp_path / title["path"]).write_text(block.code)
        else:
            script += block.code
    assert script
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def insert_lines(file, diff):
    """Puts each + line behind the line that stands above it."""
    lines = file.read_text().splitlines()
    above = None
    for edit in diff.splitlines():
        if edit.startswith("+"):
            lines.insert(lines.index(above) + 1, edit[1:])
        else:
            assert edit[1:] in lines, f"{file.name} has no line {edit[1:]!r}"
        above = edit[1:]
    file.write_text("\n".join(lines) + "\n")
