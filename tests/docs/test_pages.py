"""What pages say about the package is true of it: options, error messages, version; and the site builds strictly."""

from __future__ import annotations

import ast
import logging
import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest
import yaml

import adafisher_hf
from tests.docs.test_code_blocks import ROOT, code_blocks
from tests.oracles.imports import PACKAGE

MARK = "…"  # where a documented message stands for a value


def test_the_page_of_options_is_current():
    generator = runpy.run_path(str(ROOT / "docs/generate_options.py"))
    assert generator["page"]() == (ROOT / "docs/options.md").read_text(), "run python docs/generate_options.py"


def test_the_flow_chart_is_current():
    generator = runpy.run_path(str(ROOT / "docs/generate_choice.py"))
    assert generator["draw"]() == (ROOT / "docs/assets/choosing.svg").read_text(), "run python docs/generate_choice.py"


def test_pages_show_the_tables_as_they_are():
    generator = runpy.run_path(str(ROOT / "docs/insert_tables.py"))
    for page in generator["pages"]():
        text = page.read_text()
        assert generator["refreshed"](page) == text, "run python docs/insert_tables.py"
        assert "--8<--" not in text, f"{page}: a code host shows a hole there; use docs/insert_tables.py"


def messages_in(file: Path) -> list[str]:
    """Every string of a source file, with MARK for what an f-string puts in."""

    def text(node: ast.AST) -> str:
        if isinstance(node, ast.JoinedStr):
            return "".join(text(part) for part in node.values)
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else MARK

    nodes = ast.walk(ast.parse(file.read_text()))
    return [text(n) for n in nodes if isinstance(n, ast.JoinedStr | ast.Constant)]


def as_written(message: str) -> str:
    """Placeholders of any kind are one: logging's %s, a suggestion, several in a row."""
    message = " ".join(message.split())  # shown on several lines
    message = re.sub(rf"%s|, did you mean {MARK}\?", MARK, message)
    return re.sub(f"{MARK}+", MARK, message).strip()


def test_messages_of_the_troubleshooting_page_are_those_of_the_code():
    known = {as_written(message) for file in (ROOT / "src").rglob("*.py") for message in messages_in(file)}
    shown = [
        block.code.strip()
        for block in code_blocks(ROOT / "docs/troubleshooting.md")
        if block.language == "text" and "transformers" not in block.title
    ]
    assert len(shown) > 10
    assert [message for message in shown if as_written(message) not in known] == []


def test_the_message_of_transformers_is_the_one_shown():
    from transformers import TrainingArguments

    adafisher_hf.unregister()
    try:
        with pytest.raises(ValueError, match="^adafisherw is not a valid OptimizerNames, please select one of"):
            TrainingArguments(output_dir="out", optim="adafisherw")
    finally:
        adafisher_hf.register()


def test_the_reference_has_every_public_name():
    described = re.findall(r"^::: adafisher_hf\.(?:\w+\.)*(\w+)$", (ROOT / "docs/api.md").read_text(), re.M)
    assert sorted(described) == sorted(adafisher_hf.__all__)


def names_in(file: Path) -> set[str]:
    """Functions of a file, and methods as ``Class.method``."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


def test_the_way_of_a_number_names_what_is_there():
    """Every hop of how-it-works is a function that exists, in at most twelve."""
    page = (ROOT / "docs/how-it-works.md").read_text()
    hops = re.findall(r"^\| (\d+) \| `([\w/]+\.py)`, `([\w.]+)` \|", page, re.M)
    assert [int(number) for number, _, _ in hops] == list(range(1, len(hops) + 1)) and 8 < len(hops) <= 12
    for _, file, name in hops:
        assert name in names_in(PACKAGE / file), f"{file} has no {name}"


def test_every_room_has_its_line():
    """In CONTRIBUTING.md and in how-it-works.md: folders and files at the top."""
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    loose = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py", "optimizer.py"}
    for page in ("CONTRIBUTING.md", "docs/how-it-works.md"):
        text = (ROOT / page).read_text()
        assert set(re.findall(r"^\| `(\w+)` \|", text, re.M)) == rooms, page
        missing = {name for name in loose if name not in text and f"its {name.removesuffix('.py')}" not in text}
        assert missing == set(), page


def test_the_version_is_the_same_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == adafisher_hf.__version__
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert adafisher_hf.__version__ in headings


def test_the_workflow_calls_make_targets_that_exist():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["check"]
    targets = job["strategy"]["matrix"]["target"]
    assert job["steps"][-1]["run"] == "make ${{ matrix.target }}"
    subprocess.run(["make", "-n", *targets], cwd=ROOT, check=True, capture_output=True)


def test_a_release_is_of_the_tagged_version_and_publishes_what_was_checked():
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    commands = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    tagged = {**os.environ, "GITHUB_REF_NAME": f"v{adafisher_hf.__version__}"}
    assert subprocess.run(["bash", "-c", commands[0]], cwd=ROOT, env=tagged).returncode == 0
    other = {**tagged, "GITHUB_REF_NAME": "v9.9.9"}
    assert subprocess.run(["bash", "-c", commands[0]], cwd=ROOT, env=other).returncode != 0
    subprocess.run(["make", "-n", *commands[1].split()[1:]], cwd=ROOT, check=True, capture_output=True)
    kept, used = jobs["build"]["steps"][-1], jobs["publish"]["steps"][0]
    assert kept["with"]["path"] == used["with"]["path"] == "dist/" and jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}


def test_the_site_builds_without_a_warning(tmp_path, monkeypatch):
    config = pytest.importorskip("mkdocs.config")
    from mkdocs.commands.build import build

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(logging.getLogger("mkdocs"), "propagate", True)
    loaded = config.load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site"))
    build(loaded)
    html = (tmp_path / "site/index.html").read_text()
    asked = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', html)
    assert asked == [], "the site loads from another server"
    page = (tmp_path / "site/family/muon/index.html").read_text()
    assert page.count("<math ") == 1 and "columnalign" in page and "begin{align" not in page


def test_a_formula_that_would_be_shown_as_it_is_written():
    pytest.importorskip("latex2mathml")
    as_mathml = runpy.run_path(str(ROOT / "docs/formulas.py"))["as_mathml"]
    assert "<mfrac>" in as_mathml(r"\frac{a}{b}", "math", "math", {}, None)
    for unknown in (r"\nothing{a}", r"\begin{aligned} a &= b \end{aligned}"):
        with pytest.raises(ValueError, match="cannot be converted"):
            as_mathml(unknown, "math", "math", {}, None)
