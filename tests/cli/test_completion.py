"""TAB: what a shell with argcomplete's line in its profile is told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

COMMANDS = {"run", "compare", "coverage", "report", "doctor"}
COMPLETED = "import sys; from adafisher_hf.cli import main; sys.exit(main([]))"


def completions(tmp_path, line):
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "bash", "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "out"), "COMP_LINE": line, "COMP_POINT": str(len(line)),
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", COMPLETED], cwd=tmp_path, env=environment, check=True)
    return {word.strip() for word in (tmp_path / "out").read_text().splitlines()}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", COMMANDS),
        ("cov", {"coverage"}),
        ("coverage --su", {"--summary"}),
        ("coverage gpt2 --task ca", {"causal-lm"}),
        ("doctor --optim ada", {"adafisher", "adafisherw", "adamqlr"}),
        ("coverage some", {"some-checkpoint/"}),
        ("run tr", {"train.py"}),
        ("compare tr", {"train.py"}),
        ("compare --bud", {"--budget"}),
    ],
)
def test_what_could_come_next(tmp_path, line, expected):
    pytest.importorskip("argcomplete")
    (tmp_path / "some-checkpoint").mkdir()
    (tmp_path / "train.py").touch()
    assert {word for word in completions(tmp_path, f"adafisher-hf {line}") if not word.startswith("-h")} >= expected
