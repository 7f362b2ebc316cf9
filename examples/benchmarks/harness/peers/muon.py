"""Muon (Jordan et al., 2024): the nearest orthogonal matrix to the momentum."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .matrices import MatrixOptimizer
from .newton_schulz import orthogonalize


class Muon(MatrixOptimizer):
    def direction(self, state: dict[str, Any], gradient: Tensor, momentum: Tensor) -> Tensor:
        return orthogonalize(momentum)
