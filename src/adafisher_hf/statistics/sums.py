"""Sums over tokens of one layer: what everything else is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import OneHot, Tokens

PIECE = 1 << 20  # numbers


@dataclass
class Sums:
    """Raw sums over tokens of one layer; two of them add up, over calls, micro-batches and ranks.

    Attributes:
        input: Σ h², shape (stack, d_in), or Σ hhᵀ, shape (stack, d_in, d_in).
        output: Σ δ², shape (stack, d_out), or Σ δδᵀ, shape (stack, d_out, d_out).
        tokens: how many there were, shape (), or (stack, 1) where every matrix of the stack has its own.
    """

    input: Tensor
    output: Tensor
    tokens: Tensor


def second_moment(tokens: Tokens, weights: Tensor, dense: bool = False) -> Tensor:
    """Σ_t w_t x_t², (stack, features), or Σ_t w_t x_t x_tᵀ, (stack, features, features), in the dtype of the weights.

    Args:
        tokens: x, shape (stack, tokens, features), or one-hot ids.
        weights: w, shape (tokens,): 0 for padding, otherwise how many tokens each stands for.
        dense: the full second moment instead of its diagonal.
    """
    if isinstance(tokens, OneHot):
        counts = weights.new_zeros(1, tokens.size).index_add_(1, tokens.ids, weights.unsqueeze(0))
        return torch.diag_embed(counts) if dense else counts
    if not dense:
        return _weighted_squares(tokens, weights)
    # The network's own products are as coarse and as fast; float16 has not the range for squares of scaled gradients.
    x = tokens if tokens.dtype is torch.bfloat16 else tokens.to(weights.dtype)
    return ((x * weights.to(x.dtype).unsqueeze(-1)).mT @ x).to(weights.dtype)


def _weighted_squares(x: Tensor, weights: Tensor) -> Tensor:
    """Σ_t w_t x_t², piece by piece: the squares of all tokens at once would be another activation in full size."""
    some = max(1, PIECE * x.shape[1] // max(1, x.numel()))  # tokens
    pieces = zip(x.split(some, 1), weights.split(some), strict=True)
    return sum((w @ piece.to(weights.dtype).square() for piece, w in pieces), x.new_zeros((), dtype=weights.dtype))


def count(tokens: Tokens) -> int:
    """How many tokens there are."""
    return tokens.ids.numel() if isinstance(tokens, OneHot) else tokens.shape[1]
