"""From rows (one a token) to a Kronecker factor: sums over tokens, kept in float32 or wider."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .layers import OneHot, Rows

STRIDE = 4


@dataclass
class Sums:
    """Raw sums over tokens of one layer; two of them add up, over calls, micro-batches and ranks.

    Attributes:
        input: Σ h², shape (stack, d_in), or Σ hhᵀ, shape (stack, d_in, d_in).
        output: Σ δ², shape (stack, d_out), or Σ δδᵀ, shape (stack, d_out, d_out).
        rows: number of tokens, shape ().
    """

    input: Tensor
    output: Tensor
    rows: Tensor


def second_moment(rows: Rows, weights: Tensor, dense: bool = False) -> Tensor:
    """Σ_t w_t x_t², (stack, features), or Σ_t w_t x_t x_tᵀ, (stack, features, features).

    Args:
        rows: (stack, tokens, features), or one-hot ids.
        weights: (tokens,), 0 for padding, 1 otherwise.
        dense: the full second moment instead of its diagonal.
    """
    if isinstance(rows, OneHot):
        counts = weights.new_zeros(1, rows.size).index_add_(1, rows.ids, weights.unsqueeze(0))
        return torch.diag_embed(counts) if dense else counts
    if not dense:
        return weights @ rows.to(weights.dtype).square()
    # The network's own products are as coarse and as fast; float16 has not the range for squares of scaled gradients.
    rows = rows if rows.dtype is torch.bfloat16 else rows.to(weights.dtype)
    return ((rows * weights.to(rows.dtype).unsqueeze(-1)).mT @ rows).to(weights.dtype)


def automatic_stride(tokens: int, longest: int) -> int:
    """Every fourth token, or more of them where a dense factor of this length would get fewer tokens than it has rows.

    Measured: more tokens than that bring nothing, fewer cost a third of a nat.
    """
    return min(STRIDE, max(1, tokens // max(1, longest)))


def every(rows: Rows, stride: int) -> Rows:
    """Every ``stride``-th token."""
    if isinstance(rows, OneHot):
        return OneHot(rows.ids[::stride], rows.size)
    return rows[:, ::stride]
