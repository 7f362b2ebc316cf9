"""From rows (one a token) to a Kronecker factor: sums over tokens, in float32 or wider."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .layers import OneHot, Rows


@dataclass
class Sums:
    """Raw sums over tokens of one layer; two of them add up, over calls, micro-batches and ranks.

    Attributes:
        input: Σ h², shape (stack, d_in).
        output: Σ δ², shape (stack, d_out).
        rows: number of tokens, shape ().
    """

    input: Tensor
    output: Tensor
    rows: Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """Statistics are float32, float64 for float64 data: half precision overflows when squared."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def second_moment(rows: Rows, weights: Tensor) -> Tensor:
    """Σ_t w_t x_t², the diagonal second moment: (stack, features).

    Args:
        rows: (stack, tokens, features), or one-hot ids.
        weights: (tokens,), 0 for padding, 1 otherwise.
    """
    if isinstance(rows, OneHot):
        return weights.new_zeros(rows.size).index_add_(0, rows.ids, weights).unsqueeze(0)
    return weights @ rows.to(weights.dtype).square()
