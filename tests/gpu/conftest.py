"""Tests that need a GPU. GPU_TEST_DEVICE=cpu is a dry run of most of them."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture
def device():
    chosen = os.environ.get("GPU_TEST_DEVICE", "cuda")
    if chosen == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(chosen)


@pytest.fixture
def cuda(device):
    if device.type != "cuda":
        pytest.skip("needs CUDA itself")
    return device
