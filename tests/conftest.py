"""Every test is offline, on one thread and seeded."""

from __future__ import annotations

import os

# Read when transformers and tokenizers are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import set_seed

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    set_seed(0)


def pytest_collection_modifyitems(items):
    """The longest tests first, so that no process waits for the other's at the end."""
    items.sort(key=lambda item: "test_training" not in item.nodeid)
