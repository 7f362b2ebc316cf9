"""Newton-Schulz iterations: products of matrices alone that bring the singular values of a matrix near 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..compat import has_bfloat16_products

Coefficients = tuple[float, float, float]
Iteration = Callable[[Tensor, int], Tensor]

# Jordan et al. 2024 (Muon): the steepest slope at zero; singular values end between about 0.7 and 1.2.
QUINTIC: Sequence[Coefficients] = ((3.4445, -4.7750, 2.0315),)
# Amsel et al. 2025 (arXiv 2505.16932), Polar Express: the best polynomial of each step, for singular values from 1e-3
# on; the last one is repeated.
POLAR_EXPRESS: Sequence[Coefficients] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.875, -1.25, 0.375),
)


def iterate(matrices: Tensor, steps: int, coefficients: Sequence[Coefficients], margin: float = 1.0) -> Tensor:
    """x ← a x + b (x xᵀ) x + c (x xᵀ)² x, from x = matrix / (margin · ‖matrix‖_F).

    Args:
        matrices: (stack, R, C) with R ≤ C, so that x xᵀ is the smaller product; 0 stays 0.
        steps: how many.
        coefficients: a, b, c of each step; the last ones are repeated.
        margin: by which the norm is taken too large, against rounding.
    """
    norm = torch.linalg.matrix_norm(matrices, keepdim=True)
    x = matrices / (margin * norm).clamp(min=torch.finfo(norm.dtype).tiny)
    for step in range(steps):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


quintic: Iteration = partial(iterate, coefficients=QUINTIC)
polar_express: Iteration = partial(iterate, coefficients=POLAR_EXPRESS, margin=1.01)


def orthogonalised(wide: Tensor, iteration: Iteration, steps: int) -> Tensor:
    """The nearest matrices with orthonormal rows, about, at such a length that a number's mean square is about 1.

    Args:
        wide: (stack, R, C) with R ≤ C.
    """
    # bfloat16 is enough for a direction (Muon), and several times as fast where the device has products of it.
    halved = wide.dtype is torch.float32 and has_bfloat16_products(wide.device)
    x = wide.to(torch.bfloat16) if halved else wide
    return iteration(x, steps).to(wide.dtype) * wide.shape[-1] ** 0.5
