"""The notebook runs from its first cell to its last, and is kept without outputs."""

from __future__ import annotations

import json

import pytest

from tests.docs.test_code_blocks import ROOT

NOTEBOOK = ROOT / "examples/notebooks/first_steps.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_it_is_kept_without_outputs():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS)


def test_every_cell(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, cell in enumerate(CELLS):
        source = "".join(cell["source"]).replace("STEPS = 150", "STEPS = 20")  # enough to see it learn
        exec(compile(source, f"cell {number}", "exec"), names)
    losses = [entry["loss"] for entry in names["ours"].state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.5
    assert (tmp_path / "first-steps/adafisherw/report.html").is_file()
    by_byte = names["by_byte"]
    assert by_byte[ord("e")] > 2 * by_byte[0], "what occurs is steeper than what never does"
    assert "unseen" in capsys.readouterr().out
