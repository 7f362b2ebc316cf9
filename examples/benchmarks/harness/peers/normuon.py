"""NorMuon (arXiv 2510.05491): Muon whose rows, one a neuron, are brought to the same size over time."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .matrices import MatrixOptimizer
from .newton_schulz import orthogonalize

BETA2 = 0.95
EPS = 1e-10


class NorMuon(MatrixOptimizer):
    """The orthogonal update, its rows over the root of their running mean square, in the norm that it had."""

    def direction(self, state: dict[str, Any], gradient: Tensor, momentum: Tensor) -> Tensor:
        update = orthogonalize(momentum)
        squares = update.square().mean(-1, keepdim=True)
        if "rows" not in state:
            state["rows"] = squares.new_zeros(squares.shape)
        state["rows"].lerp_(squares, 1 - BETA2)
        even = update / (state["rows"].sqrt() + EPS)
        return even * (_norm(update) / (_norm(even) + EPS))


def _norm(stack: Tensor) -> Tensor:
    return stack.norm(dim=(-2, -1), keepdim=True)
