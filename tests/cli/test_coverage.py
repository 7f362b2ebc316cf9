"""coverage in a script: the keys of its JSON, and a status that tells whether enough is covered."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import adafisher_hf
from adafisher_hf.cli import main
from tests.models import Tiny

PAGE = Path(__file__).parents[2] / "docs/coverage.md"
ROW = re.compile(r"^\| `(\w+)` \| [^|]+ \| (`\w+`(?:, `\w+`)*) \|$", re.M)


def test_the_page_names_every_key(capsys):
    keys = {}
    for options in ([], ["--summary"], ["--memory"]):
        assert main(["coverage", "tests.models:Tiny", "--json", *options]) == 0
        content = json.loads(capsys.readouterr().out)
        assert content.pop("model") == "tests.models:Tiny"
        for part, rows in content.items():
            assert keys.setdefault(part, set(rows[0])) == {key for row in rows for key in row}
    page = {part: set(re.findall(r"\w+", names)) for part, names in ROW.findall(PAGE.read_text(encoding="utf-8"))}
    assert page == keys


def covered_share():
    rows = adafisher_hf.coverage(model := Tiny())
    uncovered = sum(model.get_parameter(row.name).numel() for row in rows if row.kind == "gradient")
    return 1 - uncovered / sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("options", [[], ["--summary"], ["--memory"], ["--summary", "--json"]], ids=" ".join)
@pytest.mark.parametrize("step", [-1e-6, 1e-6])
def test_fail_under(capsys, options, step):
    argv = ["coverage", "tests.models:Tiny", *options]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert main([*argv, "--fail-under", str(covered_share() + step)]) == int(step > 0)
    captured = capsys.readouterr()
    assert captured.out == out
    assert (
        (captured.err.rstrip().endswith(": gate") and captured.err.count("\n") == 1) if step > 0 else not captured.err
    )


def test_of_many_uncovered_parameters_three_are_named(capsys):
    assert main(["coverage", "mixtral", "--summary", "--fail-under", "1"]) == 1
    assert re.search(r"gate\.weight, \S+gate_up_proj, \S+down_proj and 93 more$", capsys.readouterr().err.rstrip())


def test_a_model_that_is_covered_passes_the_highest_bar():
    assert main(["coverage", "llama", "--summary", "--fail-under", "1"]) == 0
