"""The exact per-token Fisher diagonal of a module's parameters, the slow way, without knowing the kind of module.

For every output coordinate (t, o) of the module the Jacobian J[t, o] = ∂y[t, o]/∂θ is taken by its own backward pass.
The gradient of token t is then G_t = Σ_o δ[t, o] J[t, o], and for a parameter that meets its input and its output in
one place (all kinds here) its Kronecker factors are, in the shape of θ:

    H = Σ_t Σ_o J[t, o]²             S = Σ_o 1[θ takes part in output o] · Σ_t δ[t, o]²
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def kronecker_factors(
    parameter: Tensor, outputs: list[Tensor], deltas: list[Tensor], keep: list[Tensor], features: int = -1
) -> tuple[Tensor, Tensor, int]:
    """H and S in the shape of the parameter, and the number of tokens.

    Args:
        parameter: θ.
        outputs: the module's outputs with their graph, one a call; the axis ``features`` counts output features.
        deltas: ∂loss/∂output of each.
        keep: for each call, which tokens count (bool, flat).
    """
    h, s, rows = torch.zeros_like(parameter), torch.zeros_like(parameter), 0
    takes_part: dict[int, Tensor] = {}
    delta_sq: dict[int, Tensor] = {}
    for output, delta, kept in zip(outputs, deltas, keep, strict=True):
        y = output.movedim(features, -1).flatten(0, -2)
        d = delta.movedim(features, -1).flatten(0, -2)
        for t in torch.nonzero(kept).flatten().tolist():
            rows += 1
            for o in range(y.shape[-1]):
                jacobian = torch.autograd.grad(y[t, o], parameter, retain_graph=True)[0].detach()
                h += jacobian.square()
                takes_part[o] = takes_part.get(o, torch.zeros_like(jacobian, dtype=torch.bool)) | (jacobian != 0)
                delta_sq[o] = delta_sq.get(o, torch.zeros(())) + d[t, o].square()
    for o, involved in takes_part.items():
        s += involved * delta_sq[o]
    return h, s, rows


def fisher(parameter: Tensor, *call: tuple) -> Tensor:
    """H ∘ S / rows, the Kronecker-diagonal Fisher in the shape of the parameter."""
    h, s, rows = kronecker_factors(parameter, *call)
    return h * s / rows


def exact_fisher(loss_of_token: Callable[[int], Tensor], parameter: Tensor, tokens: int) -> Tensor:
    """Σ_t (∂loss_t/∂θ)²: the exact per-token diagonal, without any factorisation."""
    total = torch.zeros_like(parameter)
    for t in range(tokens):
        total += torch.autograd.grad(loss_of_token(t), parameter, retain_graph=True)[0].square()
    return total
