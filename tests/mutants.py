"""Deliberate mistakes in four rooms (statistics, preconditioners, update, family): the tests have to see each of them.

    python tests/mutants.py            # or: make mutants
    python tests/mutants.py graft      # those whose description has the word

Each is a line of ``tests/data/mutants.json`` that is changed in a copy of the package. A mistake that no test sees is
printed as ALIVE.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TESTS = [  # the quickest first: most mistakes are seen there
    "tests/preconditioners",
    "tests/test_extremes.py",
    "tests/statistics/test_choice.py",
    "tests/statistics/test_exact.py",
    "tests/statistics/test_shared_inputs.py",
    "tests/test_late_changes.py",
    "tests/test_precision.py",
    "tests/test_corner_cases.py",
    "tests/test_invariance.py",
    "tests/insight",
    "tests/test_reference.py",
    "tests/layers",
    "tests/statistics",
    "tests/test_recomputation.py",
]
TO_BE_CAUGHT = 0.95


class Mutant(NamedTuple):
    """A line and what it is changed into.

    Attributes:
        file: in the package.
        old: what stands there.
        new: the mistake.
        what: in words.
        first: tests that are likely to see it.
    """

    file: str
    old: str
    new: str
    what: str
    first: str


MUTANTS = [Mutant(**row) for row in json.loads((ROOT / "tests/data/mutants.json").read_text())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutants whose file or description has one of these")
    words = parser.parse_args().words
    chosen = [m for m in MUTANTS if not words or any(word in m.file + m.what for word in words)]
    if fails():
        raise SystemExit("the tests fail without any mistake: mend that first")
    alive = []
    for i, mutant in enumerate(chosen, 1):
        caught = fails(mutant)
        alive += [] if caught else [mutant]
        print(f"{i:3}/{len(chosen)}  {'caught' if caught else 'ALIVE '}  {mutant.file}: {mutant.what}", flush=True)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} caught")
    return int(len(chosen) - len(alive) < TO_BE_CAUGHT * len(chosen))


def fails(mutant: Mutant | None = None) -> bool:
    """Whether a test fails with the mistake in a copy of the package."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "adafisher_hf"
        shutil.copytree(ROOT / "src/adafisher_hf", package, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            file = package / mutant.file
            source = file.read_text()
            if mutant.old not in source:
                raise SystemExit(f"{mutant.file} has no {mutant.old!r} any more: mend tests/data/mutants.json")
            file.write_text(source.replace(mutant.old, mutant.new))
        return (mutant is not None and _fail(folder, mutant.first.split())) or _fail(folder, TESTS)


def _fail(folder: str, tests: list[str]) -> bool:
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode != 0


if __name__ == "__main__":
    sys.exit(main())
