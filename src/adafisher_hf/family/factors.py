"""What can be done with one factor K of a Kronecker product, dense or diagonal."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Factor(Protocol):
    """A kind of factor, of size d: what stands for a matrix (d, d)."""

    def identity(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """I."""

    def apply(self, tensor: Tensor, factor: Tensor, way: int, *, transposed: bool = False) -> Tensor:
        """tensor ×_way K, or Kᵀ."""

    def gram(self, factor: Tensor) -> Tensor:
        """KᵀK."""

    def mean_square(self, factor: Tensor) -> Tensor:
        """tr(KᵀK) / d."""

    def second_moment(self, tensor: Tensor, way: int) -> Tensor:
        """T_(way) T_(way)ᵀ, as far as the kind holds it."""

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """A B."""


class _Dense:
    """K itself."""

    def identity(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.eye(size, dtype=dtype, device=device)

    def apply(self, tensor: Tensor, factor: Tensor, way: int, *, transposed: bool = False) -> Tensor:
        matrix = factor if transposed else factor.mT
        return (tensor.movedim(way, -1) @ matrix).movedim(-1, way)

    def gram(self, factor: Tensor) -> Tensor:
        return factor.mT @ factor

    def mean_square(self, factor: Tensor) -> Tensor:
        return torch.linalg.vector_norm(factor).square() / factor.shape[0]

    def second_moment(self, tensor: Tensor, way: int) -> Tensor:
        rows = tensor.movedim(way, 0).flatten(1) if tensor.ndim > 1 else tensor.unsqueeze(1)
        return rows @ rows.mT

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b


class _Diagonal:
    """The diagonal of K, a vector."""

    def identity(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.ones(size, dtype=dtype, device=device)

    def apply(self, tensor: Tensor, factor: Tensor, way: int, *, transposed: bool = False) -> Tensor:
        return (tensor.movedim(way, -1) * factor).movedim(-1, way)

    def gram(self, factor: Tensor) -> Tensor:
        return factor.square()

    def mean_square(self, factor: Tensor) -> Tensor:
        return factor.square().mean()

    def second_moment(self, tensor: Tensor, way: int) -> Tensor:
        return tensor.movedim(way, 0).reshape(tensor.shape[way], -1).square().sum(1)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b


dense_factor: Factor = _Dense()
diagonal_factor: Factor = _Diagonal()
