"""What the momentum is divided by, without ever being stored at full size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Basis:
    """An orthogonal basis of the rows and one of the columns of a parameter; None stands for the identity.

    Attributes:
        rows: eigenvectors as columns, (stack, R, R).
        cols: the same, (stack, C, C).
    """

    rows: Tensor | None = None
    cols: Tensor | None = None

    def rotate(self, x: Tensor) -> Tensor:
        """Q_rowsᵀ x Q_cols: into the basis, in the basis's dtype."""
        x = x if self.rows is None else self.rows.mT @ x.to(self.rows.dtype)
        return x if self.cols is None else x.to(self.cols.dtype) @ self.cols

    def rotate_back(self, x: Tensor) -> Tensor:
        """Q_rows x Q_colsᵀ: out of the basis."""
        x = x if self.rows is None else self.rows @ x
        return x if self.cols is None else x @ self.cols.mT


@dataclass(frozen=True)
class Divisor:
    """D = Σ_k rows_k ⊗ cols_k + damping in a basis, for a parameter seen as a stack of matrices.

    Attributes:
        rows: (owners, stack, R).
        cols: (owners, stack, C).
        damping: broadcasts to (stack, 1, 1).
        basis: where D is diagonal.
        second_moment: EMA of the squared rotated gradient, (stack, R, C), each gradient in units of its own RMS; where
            it is given, D is its square root relative to its mean instead of the sum of products.
        decay: of that EMA.
        gathers: ``divide`` asks other ranks for their rows; better not twice.
    """

    gathers: ClassVar[bool] = False

    rows: Tensor
    cols: Tensor
    damping: Tensor
    basis: Basis = Basis()
    second_moment: Tensor | None = None
    decay: float = 0.95

    def dense(self, out: Tensor | None = None) -> Tensor:
        """D at full size, (stack, R, C), written into ``out`` where one is given."""
        if self.second_moment is not None:
            return self._from_second_moment(self.second_moment, out)
        rows, cols = self.rows.unsqueeze(-1), self.cols.unsqueeze(-2)
        out = torch.mul(rows[0], cols[0], out=out)
        for row, col in zip(rows[1:], cols[1:], strict=True):
            out.addcmul_(row, col)
        return out.add_(self.damping)

    def divide(self, momentum: Tensor, out: Tensor | None = None) -> Tensor:
        """momentum / D, in the basis of D and back; without a basis it uses no memory but ``out``."""
        out = self.dense(out)
        torch.div(self.basis.rotate(momentum), out, out=out)
        back = self.basis.rotate_back(out)
        return out if back is out else out.copy_(back)

    def observe(self, grad: Tensor, grad_sq: Tensor) -> None:
        """Takes a gradient into the second moment where D has one; a gradient that is not finite changes nothing.

        Args:
            grad: (stack, R, C).
            grad_sq: Σ g², shape ().
        """
        if self.second_moment is None:
            return
        valid = torch.isfinite(grad_sq) & (grad_sq > 0)
        squared = self.basis.rotate(grad).square_()
        squared.mul_(grad.numel() / grad_sq)
        old = self.second_moment
        old.copy_(torch.where(valid, squared.lerp_(old.to(squared.dtype), self.decay), old))

    def blocks(self) -> list[Divisor]:
        """One divisor for each matrix of the stack, for parameters whose matrices are blocks of their own."""
        return [self.matrices(slice(i, i + 1)) for i in range(self.rows.shape[1])]

    def matrices(self, chosen: slice) -> Divisor:
        """The divisor of some matrices of the stack."""

        def pick(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[chosen]

        basis = Basis(pick(self.basis.rows), pick(self.basis.cols))
        damping = self.damping.expand(self.rows.shape[1], 1, 1)[chosen]
        rows, cols = self.rows[:, chosen], self.cols[:, chosen]
        return Divisor(rows, cols, damping, basis, pick(self.second_moment), self.decay)

    def some_rows(self, start: int, stop: int) -> Divisor:
        """The divisor of some rows of the matrices, counted through the stack; the basis must not mix rows.

        Rows of several matrices become matrices of one row.
        """
        owners, stack, length = self.rows.shape
        if stack == 1:
            return Divisor(self.rows[..., start:stop], self.cols, self.damping, self.basis)
        rows = self.rows.reshape(owners, stack * length, 1)[:, start:stop]
        matrix = torch.arange(start, stop, device=rows.device) // length
        basis = Basis(None, None if self.basis.cols is None else self.basis.cols[matrix])
        return Divisor(rows, self.cols[:, matrix], self.damping.expand(stack, 1, 1)[matrix], basis)

    def _from_second_moment(self, second_moment: Tensor, out: Tensor | None) -> Tensor:
        mean = second_moment.mean((1, 2), keepdim=True, dtype=self.damping.dtype)
        out = torch.div(second_moment, torch.where(mean > 0, mean, 1.0), out=out)
        return out.sqrt_().add_(self.damping)
