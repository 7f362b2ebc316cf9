"""examples/benchmarks/family_papers.py and family_cost.py on nothing, and what docs/family.md says of their numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from adafisher_hf import SIRFShampoo
from adafisher_hf.cli import build_on_meta, main
from adafisher_hf.insight.memory import state_bytes
from benchmarks import family_cost, family_papers
from benchmarks.harness import timing

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/family.md").read_text()


def rows_of(text):
    """The cells of all tables, without Markdown."""
    lines = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", text).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


@pytest.fixture(autouse=True)
def _threads_again():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_papers_results(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sirfshampoo")
    monkeypatch.setattr(family_papers, "DIGIT_STEPS", 30)
    monkeypatch.setattr(family_papers, "RATES", (1e-3, 1e-2))
    family_papers.main(["--seeds", "1", "--steps", "20", "--out", str(tmp_path / "papers.json")])
    found = json.loads((tmp_path / "papers.json").read_text())["results"]
    assert list(found) == ["digits", "rosenbrock", "regression, Friedman", "regression, diabetes"]
    assert found["digits"]["the authors' package"]["weights differ by up to"] < 1e-14
    assert found["digits"]["AdamW"]["accuracy, %"] > 15
    assert found["rosenbrock"]["AdamQLR, α as large as it likes"]["value at the end"] < 1e-6
    for name in ("regression, Friedman", "regression, diabetes"):
        assert len(found[name]) == 5
        budget = found[name]["AdamQLR, untuned"]["seconds"]
        assert all(arm["training loss"] < 1.5 and arm["seconds"] < 3 * budget for arm in found[name].values())
    shown = rows_of(capsys.readouterr().out)
    assert [row[0] for row in shown].count("AdamQLR, untuned") == 3


def test_a_budget_of_time_ends_a_training():
    ends = [
        family_papers.fit(family_papers.DATA["diabetes"], family_papers.adam(1e-3), 0, seconds=budget)
        for budget in (0.02, 0.2)
    ]
    assert 0 < ends[0]["steps"] < ends[1]["steps"] and ends[1]["training loss"] < ends[0]["training loss"]


def test_the_time_of_a_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(family_cost, "RandomTokens", lambda layers: TINY)
    family_cost.main(["--steps", "10", "--out", str(tmp_path / "cost.json")])
    found = json.loads((tmp_path / "cost.json").read_text())
    assert found["steps of AdamW"]["AdamW"] == 1 and len(found["steps of AdamW"]) == 12
    assert all(ratio > 0 for ratio in found["steps of AdamW"].values())
    assert found["question"]["steps"] == 10 + timing.TURN
    knobs = {arm["name"]: arm["knobs"] for arm in found["question"]["arms"]}
    assert knobs["AdaFisherW, diagonal"]["update_warmup"] == 0 and "update_warmup" not in knobs["Muon"]
    assert "| SOAP | " in capsys.readouterr().out


TINY = family_cost.RandomTokens(batch_size=1, block_size=8, layers=1)

ARMS = {  # of family_cost, by the first cell of the page's table; and of ``coverage --memory``
    "AdamW": ("AdamW", "AdamW"),
    "FAdam": ("FAdam", "fadam"),
    "SIRFShampoo, diagonal": ("SIRFShampoo, diagonal", None),
    "SIRFShampoo": ("SIRFShampoo, dense", "sirfshampoo"),
    "SOAP": ("SOAP", "soap"),
    "Muon": ("Muon", "muon"),
    "AdaFisher, diagonal": ("AdaFisherW, diagonal", "structure=diagonal"),
    "AdaFisher, kronecker": ("AdaFisherW, kronecker", "structure=kronecker"),
    "AdaFisher, orthogonal": ("AdaFisherW, orthogonal", "structure=orthogonal"),
    "AdamQLR": ("AdamQLR", "adamqlr"),
}


def test_the_page_s_table_has_the_measured_numbers(capsys):
    """State is counted, time is in the committed file."""
    table = {row[0]: row for row in rows_of(PAGE.split("Which to choose.")[0]) if len(row) == 3 and row[0] in ARMS}
    assert table.keys() == ARMS.keys()
    times = json.loads((ROOT / "docs/family/cost.json").read_text())["steps of AdamW"]
    assert main(["coverage", "gpt2", "--memory", "--json"]) == 0
    bytes_of = {row["setting"]: row["per_parameter"] for row in json.loads(capsys.readouterr().out)["memory"]}
    model = build_on_meta("gpt2", "auto")
    diagonal = sum(state_bytes(SIRFShampoo, model, structure="diagonal").values())
    bytes_of[None] = diagonal / sum(p.numel() for p in model.parameters())
    for name, (arm, setting) in ARMS.items():
        assert float(table[name][2]) == times[arm], name
        assert float(table[name][1]) == round(bytes_of[setting], 2), name


def test_the_page_s_results_are_those_of_the_committed_file():
    found = json.loads((ROOT / "docs/family/papers.json").read_text())["results"]
    shown = rows_of(PAGE.split("## Do their papers' results hold here?")[1])

    def numbers(name, *keys):
        return [
            [arm.replace("untuned", "untuned (α ≤ 0.1)"), *(f"{values[key]:.3g}" for key in keys)]
            for arm, values in found[name].items()
            if keys[0] in values
        ]

    expected = numbers("digits", "accuracy, %", "training loss") + numbers("rosenbrock", "value at the end", "half way")
    assert [row for row in expected if row not in shown] == []
    for data in ("Friedman", "diabetes"):
        expected = numbers(f"regression, {data}", "training loss", "test loss")
        assert [row for row in expected if row not in [cells[:3] for cells in shown]] == []
    assert found["digits"]["the authors' package"]["weights differ by up to"] < 9e-16


def test_what_the_page_says_of_the_regressions():
    found = json.loads((ROOT / "docs/family/papers.json").read_text())["results"]

    def loss(data, arm, measure):
        return next(
            v[measure] for name, v in found[f"regression, {data}"].items() if name.startswith(arm) or arm in name
        )

    qlr, default = "AdamQLR, untuned", "Adam, lr 0.001"
    assert loss("Friedman", qlr, "training loss") < loss("Friedman", default, "training loss")
    assert loss("diabetes", qlr, "test loss") < loss("diabetes", default, "test loss")
    assert loss("diabetes", qlr, "training loss") > loss("diabetes", default, "training loss")
    assert loss("Friedman", qlr, "test loss") == pytest.approx(loss("Friedman", default, "test loss"), rel=0.03)
    for data, share, lower in (("Friedman", 1 / 4, 0.15), ("diabetes", 1 / 20, 0.47)):
        best = loss(data, "best training loss", "training loss") / loss(data, qlr, "training loss")
        assert best == pytest.approx(share, rel=0.1)
        slow = loss(data, "best validation loss", "test loss") / loss(data, qlr, "test loss")
        assert 1 - slow == pytest.approx(lower, abs=0.01)
        steps = loss(data, default, "steps") / loss(data, qlr, "steps")
        assert steps == pytest.approx(5.5, abs=0.3)


def test_the_summary_of_the_page_is_that_of_the_tables():
    """What family.md, README.md and choosing.md say of the comparison stands in the tables that family.py wrote."""
    tables = {name: (ROOT / f"docs/family/{name}/table.md").read_text() for name in COMPARED}
    rows = dict(re.findall(r"^\| ([^|]+) \| (\d\.\d+ ± [^|]+ \| [^|]+ \| [^|]+) \|$", PAGE, re.M))
    assert len(rows) == 10
    for optimizer, cells in rows.items():
        for cell, table in zip(cells.split(" | "), tables.values(), strict=True):
            row = re.search(rf"^\| {re.escape(SUMMARY.get(optimizer, optimizer))} \| .*$", table, re.M)
            assert row is not None and f"| {cell} |" in row[0], (optimizer, cell)
    for page in ("README.md", "docs/choosing.md"):
        for number in DIFFERENCE.findall((ROOT / page).read_text()):
            assert any(f"-{number} *" in table for table in [*tables.values(), PRETRAINING]), (page, number)


DIFFERENCE = re.compile(
    r"0\.\d{3} ± 0\.\d{3}(?= (?:and [\d. ±]+ )?(?:below|nats below AdamW on a small ViT|with LoRA))"
)
COMPARED = ("news-128-300", "digits-200", "digits-lora-200")
PRETRAINING = (ROOT / "docs/pretraining/news-128-300/table.md").read_text()
SUMMARY = {  # the names of the page, and of the tables
    "SIRFShampoo": "SIRFShampoo, dense",
    "AdaFisher as published": "AdaFisherW, reference",
    "AdaFisher, diagonal": "AdaFisherW, diagonal",
    "AdaFisher, kronecker": "AdaFisherW, kronecker",
    "AdaFisher, orthogonal": "AdaFisherW, orthogonal",
}
