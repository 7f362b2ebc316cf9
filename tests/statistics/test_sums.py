"""Sums over tokens, taken in pieces."""

from __future__ import annotations

import pytest
import torch

from adafisher_hf.statistics import sums


@pytest.mark.parametrize("piece", [1, 7, 60, 1 << 20])
@pytest.mark.parametrize("tokens", [0, 1, 13])
def test_pieces_add_up(monkeypatch, piece, tokens):
    monkeypatch.setattr(sums, "PIECE", piece)
    generator = torch.Generator().manual_seed(0)
    x, weights = (
        torch.randn(2, tokens, 5, generator=generator).double(),
        torch.rand(tokens, generator=generator).double(),
    )
    expected = (weights[:, None] * x**2).sum(1)
    torch.testing.assert_close(sums.second_moment(x, weights), expected)


def test_no_temporary_in_full_size(monkeypatch):
    """Of a long sequence nothing is made that is as large as a piece, or larger than one token."""
    monkeypatch.setattr(sums, "PIECE", 64)
    made = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and not out._is_view():
                made.append(out.numel())
            return out

    x, weights = torch.randn(1, 100, 8), torch.ones(100)
    with Watch():
        sums.second_moment(x, weights)
    assert max(made) <= 64
