"""Builds the package, checks it, and tries the wheel where nothing else of ours is: `make release-check`.

Leaves the checked files in dist/. Run it with a Python that has build and twine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
CONSTRAINTS = ROOT / "constraints.txt"
TORCH = next(line for line in CONSTRAINTS.read_text().splitlines() if line.startswith("torch=="))
IN_WHEEL = {"adafisher_hf/__init__.py", "adafisher_hf/py.typed"}
IN_SDIST = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "Makefile"}
LARGEST_WHEEL = 320_000  # bytes
MODEL_AND_DATA = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(LlamaConfig(**sizes))
dataset = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (8, 8))]
before = [parameter.detach().clone() for parameter in model.parameters()]
"""
AND_CHECK = """
assert "site-packages" in adafisher_hf.__file__, adafisher_hf.__file__
assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters())), "nothing was trained"
print("trained with adafisher_hf", adafisher_hf.__version__)
"""


def main() -> None:
    version = read_version()
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", ROOT)
    wheel, sdist = DIST / f"adafisher_hf-{version}-py3-none-any.whl", DIST / f"adafisher_hf-{version}.tar.gz"
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    check_contents(wheel, sdist)
    with tempfile.TemporaryDirectory() as folder:
        try_wheel(wheel, version, Path(folder))
    print(f"\nrelease-check: {wheel.name} and {sdist.name} are fine")


def read_version() -> str:
    """The version of the package, which the changelog and the citation have to have too."""
    version = re.search(r'^__version__ = "(.+)"$', (ROOT / "src/adafisher_hf/__init__.py").read_text(), re.M)[1]
    for name, line in (("CHANGELOG.md", f"## {version}"), ("CITATION.cff", f"version: {version}")):
        if not re.search(rf"^{re.escape(line)}\b", (ROOT / name).read_text(), re.M):
            sys.exit(f"release-check: {name} has no line {line!r}: the version is {version}")
    return version


def check_contents(wheel: Path, sdist: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    missing = (IN_WHEEL - names) | (IN_SDIST - packed)
    stray = {name for name in names if not name.startswith("adafisher_hf")}
    if missing or stray:
        sys.exit(f"release-check: missing {sorted(missing)}, in the wheel by mistake {sorted(stray)}")
    if wheel.stat().st_size > LARGEST_WHEEL:
        sys.exit(f"release-check: the wheel has {wheel.stat().st_size:,} bytes, more than {LARGEST_WHEEL:,}")


def try_wheel(wheel: Path, version: str, folder: Path) -> None:
    """Installs the wheel into an environment of its own and runs the README's three lines there, offline."""
    run(sys.executable, "-m", "venv", folder / "venv")
    binaries = folder / "venv" / "bin"
    # torch by itself and first, as in the Makefile.
    for what in (TORCH, wheel):
        run(binaries / "python", "-m", "pip", "install", "-q", "-c", CONSTRAINTS, what, cwd=folder)
    three_lines = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    (folder / "three_lines.py").write_text(MODEL_AND_DATA + three_lines + AND_CHECK)
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    offline.pop("PYTHONPATH", None)
    run(binaries / "python", "three_lines.py", cwd=folder, env=offline)
    run(binaries / "adafisher-hf", "coverage", "gpt2", "--summary", cwd=folder, env=offline)
    installed = subprocess.check_output(
        [binaries / "python", "-c", "import importlib.metadata as m; print(m.version('adafisher-hf'))"], text=True
    )
    if installed.strip() != version:
        sys.exit(f"release-check: the wheel says {installed.strip()}, the package {version}")


def run(*command: object, **options: object) -> None:
    words = [str(word) for word in command]
    print("+", *words, flush=True)
    subprocess.run(words, check=True, **options)  # type: ignore[call-overload]


if __name__ == "__main__":
    main()
