"""What the tests of the scripts share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _denormals_again():
    """Benchmarks flush them, which would last for the whole process."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def compared(capsys):
    """The rows of the table that --compare prints: optimizer, learning rate, metrics, seconds."""

    def read() -> list[list[str]]:
        table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]

    return read
