"""The orthogonal factor of many matrices of one shape at once, nearly: what Muon and its relatives share."""

from __future__ import annotations

import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315  # of Muon's quintic: singular values end between 0.7 and 1.2
STEPS = 5


def orthogonalize(stack: Tensor, steps: int = STEPS) -> Tensor:
    """U Vᵀ of each U S Vᵀ in (n, rows, columns), in the arithmetic that its authors run it in."""
    tall = stack.shape[-2] > stack.shape[-1]
    x = (stack.mT if tall else stack).to(_dtype(stack))
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=B, alpha=C)
        x = torch.baddbmm(x, polynomial, x, beta=A)
    return (x.mT if tall else x).to(stack.dtype)


def _dtype(stack: Tensor) -> torch.dtype:
    """bfloat16, except on processors that would have to emulate it."""
    native = stack.device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native and stack.dtype == torch.float32 else stack.dtype
