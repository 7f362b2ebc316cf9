"""What pages say about the package is true of it: options, error messages, version; and the site builds strictly."""

from __future__ import annotations

import ast
import logging
import re
import runpy
import subprocess
from pathlib import Path

import pytest
import yaml

import adafisher_hf
from tests.docs.test_code_blocks import ROOT, code_blocks

MARK = "…"  # where a documented message stands for a value


def test_the_page_of_options_is_current():
    generator = runpy.run_path(str(ROOT / "docs/generate_options.py"))
    assert generator["page"]() == (ROOT / "docs/options.md").read_text(), "run python docs/generate_options.py"


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


def test_the_version_is_the_same_everywhere():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == adafisher_hf.__version__
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert adafisher_hf.__version__ in headings


def test_the_workflow_calls_make_targets_that_exist():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["check"]
    targets = job["strategy"]["matrix"]["target"]
    assert job["steps"][-1]["run"] == "make ${{ matrix.target }}"
    subprocess.run(["make", "-n", *targets], cwd=ROOT, check=True, capture_output=True)


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
