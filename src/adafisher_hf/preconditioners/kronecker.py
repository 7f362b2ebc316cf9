"""``structure="kronecker"``: full factors E[hhᵀ] and E[δδᵀ] where they are small enough, and their eigenbasis.

The curvature of K-FAC (Martens & Grosse 2015), divided in its eigenbasis as in E-KFAC (George et al. 2018); with
``second_moment="rotated"`` its diagonal there is an average of squared gradients, as in SOAP (Vyas et al. 2024).

The state of a parameter gains ``row_basis`` and ``col_basis`` (eigenvectors of each dense side, the identity until the
first decomposition) and, for ``second_moment="rotated"``, one full-size average. Both uses of a tied weight share a
basis, that of the sum of their factors; their products in it still add up.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layers import Layout
from ..statistics.telling import warn
from .base import Direction, Need, Sides, State, diagonal_of, is_normal, ratio
from .diagonal import Diagonal
from .quotient import Quotient

logger = logging.getLogger(__name__)

SIDES = ("row", "col")


@dataclass(frozen=True)
class Basis:
    """An orthogonal basis of the rows and one of the columns of a parameter; None stands for the identity.

    Attributes:
        rows: eigenvectors as columns, (stack, R, R).
        cols: the same, (stack, C, C).
    """

    rows: Tensor | None = None
    cols: Tensor | None = None

    @property
    def needs(self) -> Need:
        """How much of a matrix one number in the basis is made of."""
        if self.rows is not None:
            return "matrix"
        return "element" if self.cols is None else "row"

    def rotate(self, x: Tensor) -> Tensor:
        """Q_rowsᵀ x Q_cols: into the basis, in the basis's dtype."""
        x = x if self.rows is None else self.rows.mT @ x.to(self.rows.dtype)
        return x if self.cols is None else x.to(self.cols.dtype) @ self.cols

    def rotate_back(self, x: Tensor) -> Tensor:
        """Q_rows x Q_colsᵀ: out of the basis."""
        x = x if self.rows is None else self.rows @ x
        return x if self.cols is None else x @ self.cols.mT

    def of_matrices(self, chosen: slice | Tensor) -> Basis:
        """That of some matrices of the stack."""
        return Basis(
            None if self.rows is None else self.rows[chosen],
            None if self.cols is None else self.cols[chosen],
        )


@dataclass(frozen=True)
class RotatedQuotient(Quotient):
    """momentum / D in a basis where D = Σ_k rows_k ⊗ cols_k + damping, and back.

    Attributes:
        basis: where D is diagonal.
        second_moment: EMA of the squared rotated gradient, (stack, R, C), each gradient in units of its own RMS; where
            it is given, D is its square root relative to its mean, and damping, instead of the sum of products.
    """

    basis: Basis = Basis()
    second_moment: Tensor | None = None

    @property
    def needs(self) -> Need:  # type: ignore[override]
        return self.basis.needs

    def dense(self, out: Tensor | None = None) -> Tensor:
        if self.second_moment is None:
            return super().dense(out)
        mean = self.second_moment.mean((1, 2), keepdim=True, dtype=self.damping.dtype)
        out = torch.div(self.second_moment, torch.where(mean > 0, mean, 1.0), out=out)
        return out.sqrt_().add_(self.damping)

    def apply(self, momentum: Tensor, out: Tensor | None = None) -> Tensor:
        out = self.dense(out)
        torch.div(self.basis.rotate(momentum), out, out=out)
        back = self.basis.rotate_back(out)
        return out if back is out else out.copy_(back)

    def sample(self, size: int) -> Tensor:
        if self.second_moment is None:
            return super().sample(size)
        rows, cols = (slice(None, None, max(1, side.shape[-1] // size)) for side in (self.rows, self.cols))
        return dataclasses.replace(self, second_moment=self.second_moment[:, rows, cols]).dense()

    def matrices(self, chosen: slice) -> RotatedQuotient:
        moment = None if self.second_moment is None else self.second_moment[chosen]
        some = super().matrices(chosen)
        return dataclasses.replace(some, basis=self.basis.of_matrices(chosen), second_moment=moment)

    def some_rows(self, start: int, stop: int) -> RotatedQuotient:
        some = super().some_rows(start, stop)
        if self.rows.shape[1] == 1:
            return some
        matrix = torch.arange(start, stop, device=self.rows.device) // self.rows.shape[-1]
        return dataclasses.replace(some, basis=self.basis.of_matrices(matrix))


class Kronecker(Diagonal):
    """Calibrated curvature in the eigenbasis of dense factors.

    Args:
        max_factor_dim: a side longer than this keeps a diagonal factor.
        rotated: the curvature in the basis is an EMA of the squared rotated gradient, not a product of eigenvalues,
            where both sides are dense. (Rows of an embedding are too unlike each other for it: measured, 0.6 nats.)
        decay: of that EMA.
    """

    renews = True
    pairs = False  # adapters take one step of their product, from diagonals

    def __init__(self, max_factor_dim: int, rotated: bool, decay: float):
        self.max_factor_dim, self.observes, self.decay = max_factor_dim, rotated, decay
        self.failures = 0  # eigendecompositions that failed

    @classmethod
    def from_config(cls, config: Any) -> Kronecker:
        made = cls(config.max_factor_dim, config.second_moment == "rotated", config.beta2)
        made.pairs = config.takes_pairs
        return made

    @classmethod
    def refuses(cls, config: Any, *, sharded: bool, ranks: int) -> str | None:
        if sharded and config.second_moment == "rotated":
            return "second_moment=rotated does not work with FSDP2: use second_moment=factors"
        if config.state_dtype == "int8" and config.second_moment == "rotated":
            return (
                "state_dtype=int8 keeps the momentum alone in 8 bits, and second_moment=rotated has a second buffer of "
                "its size: use second_moment=factors, or state_dtype=bfloat16"
            )
        return None

    def sides(self, layout: Layout) -> Sides:
        """Which sides of a matrix get a full factor; vectors (biases, norms) stay diagonal."""
        if layout.elementwise or layout.col == "unit" or (self.pairs and layout.role == "adapter"):
            return ()
        lengths = zip(SIDES, layout.shape[1:], strict=True)
        return tuple(side for side, length in lengths if 1 < length <= self.max_factor_dim)

    def advice(self, layouts: Iterable[Layout]) -> str | None:
        """Says so where many hidden matrices are too long for factors."""
        hidden = [layout for layout in layouts if layout.role == "hidden"]
        cut = [layout for layout in hidden if len(self.sides(layout)) < len(SIDES)]
        if not cut:
            return None
        numbers = [sum(math.prod(layout.shape) for layout in some) for some in (cut, hidden)]
        longest = max(max(layout.shape[1:]) for layout in cut)
        return (
            f"structure='kronecker' keeps a diagonal on at least one side of {numbers[0] / numbers[1]:.0%} of the "
            f"numbers in hidden matrices: sides are up to {longest} long, max_factor_dim={self.max_factor_dim}. For "
            f"such widths structure='orthogonal' costs less; max_factor_dim={longest} gives the factors, for memory "
            "and time that grow with its square and cube"
        )

    def init(self, state: State, layouts: list[Layout], like: Tensor) -> None:
        super().init(state, layouts, like)
        for k, layout in enumerate(layouts):
            stack = layout.shape[0]
            for side in self.sides(layout):
                length = state[f"{side}_factor_{k}"].shape[-1]
                state[f"{side}_factor_{k}"] = like.new_zeros(stack, length, length)
                eye = torch.eye(length, dtype=like.dtype, device=like.device)
                state[f"{side}_basis"] = eye.repeat(stack, 1, 1)
            if self.observes and self.sides(layout) == SIDES:
                state["rotated_sq"] = like.new_zeros(layout.shape, dtype=state["exp_avg"].dtype)

    def direction(self, state: State, layouts: list[Layout], damping: float) -> Direction:
        basis = Basis(state.get("row_basis"), state.get("col_basis"))
        quotient = self._quotient(*self._corrected(state, layouts), layouts[0], damping)
        if basis == Basis():
            return quotient
        moment = state.get("rotated_sq")
        damped = quotient.damping if moment is None else torch.full_like(quotient.damping, damping)
        return RotatedQuotient(quotient.rows, quotient.cols, damped, basis, moment)

    def _corrected(self, state: State, layouts: list[Layout]) -> tuple[list[Tensor], list[Tensor]]:
        owners = range(len(layouts))
        return [_in_basis(state, "row", k) for k in owners], [_in_basis(state, "col", k) for k in owners]

    @torch.no_grad()
    def observe(self, state: State, layout: Layout, grad: Tensor) -> None:
        """Takes a gradient into the rotated second moment; one that is not finite changes nothing."""
        if "rotated_sq" not in state:
            return
        old = state["rotated_sq"]
        grad = grad.reshape(old.shape).to(state["sigma_sq"].dtype)
        dims = (1, 2) if layout.independent else (0, 1, 2)
        rms = (
            torch.linalg.vector_norm(grad, dim=dims, keepdim=True)
            / (grad[0] if layout.independent else grad).numel() ** 0.5
        )
        squared = Basis(state["row_basis"], state["col_basis"]).rotate(grad / rms).square_()
        valid = is_normal(rms)
        old.copy_(torch.where(valid, squared.lerp_(old.to(squared.dtype), self.decay), old))

    @torch.no_grad()
    def renew(self, states: list[tuple[State, list[Layout]]]) -> None:
        """New eigenvectors for all dense sides of these parameters, decomposed in batches of equal size."""
        batches: dict[tuple, list[tuple[State, str, Tensor]]] = defaultdict(list)
        for state, layouts in states:
            for side in SIDES:
                if f"{side}_basis" in state:
                    matrix = _pooled_factor(state, side, len(layouts))
                    batches[matrix.shape[-1], matrix.device, matrix.dtype].append((state, side, matrix))
        fresh: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for batch in batches.values():
            vectors = self._eigenvectors(torch.cat([matrix for _, _, matrix in batch]))
            parts = vectors.split([len(matrix) for _, _, matrix in batch])
            for (state, side, _), new in zip(batch, parts, strict=True):
                old = state[f"{side}_basis"]
                usable = torch.isfinite(new).all((1, 2), keepdim=True)
                fresh[id(state)][side] = torch.where(usable, new, old)
        for state, _ in states:
            _change_basis(state, fresh[id(state)])

    def figures(self) -> dict[str, dict[str, float]]:
        """How many eigendecompositions failed and kept their old basis."""
        return {"kronecker": {"failed_bases": float(self.failures)}}

    def _eigenvectors(self, matrices: Tensor) -> Tensor:
        try:
            return torch.linalg.eigh(matrices)[1]
        except RuntimeError:  # LinAlgError is one
            return torch.stack([self._eigenvectors_of_one(matrix) for matrix in matrices])

    def _eigenvectors_of_one(self, matrix: Tensor) -> Tensor:
        try:
            return torch.linalg.eigh(matrix)[1]
        except RuntimeError as error:
            self.failures += 1
            warn(logger, "a Kronecker factor kept its old basis: %s", error)
            return torch.full_like(matrix, float("nan"))


def _pooled_factor(state: State, side: str, owners: int) -> Tensor:
    """Σ_k factor_k · mean(other side)_k: the factor of this side, of all owners of a tied weight together."""
    other = SIDES[1 - SIDES.index(side)]
    terms = []
    for k in range(owners):
        weight = state[f"factor_weight_{k}"]
        share = ratio(diagonal_of(state[f"{other}_factor_{k}"]).mean(-1, keepdim=True), weight)
        terms.append(ratio(state[f"{side}_factor_{k}"], weight.unsqueeze(-1)) * share.unsqueeze(-1))
    return torch.stack(terms).sum(0)


def _in_basis(state: State, side: str, k: int) -> Tensor:
    """diag(Qᵀ F Q), the factor's curvature along each basis vector; of a diagonal factor, the factor."""
    factor, weight, basis = state[f"{side}_factor_{k}"], state[f"factor_weight_{k}"], state.get(f"{side}_basis")
    if basis is not None:
        factor = (basis * (factor @ basis)).sum(-2).clamp_(min=0.0)
    return ratio(factor, weight)


def _change_basis(state: State, new: dict[str, Tensor]) -> None:
    """Installs new bases and carries the rotated second moment over.

    With R = Q_oldᵀ Q_new, entries that are uncorrelated with variances v have variances (R∘R)ᵀ v in the new basis.
    """
    mixing = {side: (state[f"{side}_basis"].mT @ basis).square() for side, basis in new.items()}
    if "rotated_sq" in state:
        moved = Basis(mixing.get("row"), mixing.get("col")).rotate(state["rotated_sq"])
        state["rotated_sq"].copy_(moved)
    for side, basis in new.items():
        state[f"{side}_basis"].copy_(basis)
