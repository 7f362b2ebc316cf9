"""The fallback for a parameter whose layer no hook understands: sums made of its gradient alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layers import Layout
from .sums import Sums


def gradient_sums(grad: Tensor, layout: Layout, dense: tuple[str, ...] = ()) -> Sums:
    """Row and column sums of g² in place of Σδ² and Σh², the exact diagonal for vectors.

    Args:
        grad: the gradient, viewed as ``layout.shape``.
        dense: sides that get GGᵀ or GᵀG, of which the sums are the diagonal.
    """
    squared = grad.square()
    if layout.elementwise:
        return Sums(torch.ones_like(squared[..., 0]), squared[..., 0], squared.new_ones(()))
    sides = {
        layout.col: grad.mT @ grad if "col" in dense else squared.sum(1),
        layout.row: grad @ grad.mT if "row" in dense else squared.sum(2),
    }
    totals = squared.sum((1, 2)).unsqueeze(-1)
    tokens = totals if layout.independent else squared.sum()
    if len(squared) > 1 and not layout.independent:  # groups of a convolution: each by its own total, not by theirs all
        share = torch.where(totals > 0, tokens / totals, 0.0)
        sides[layout.row] = sides[layout.row] * (share.unsqueeze(-1) if "row" in dense else share)
    return Sums(sides.get("input", tokens), sides.get("output", tokens), tokens)
