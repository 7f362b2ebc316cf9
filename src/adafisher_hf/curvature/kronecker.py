"""``structure="kronecker"``: full factors E[hhᵀ] and E[δδᵀ] where they are small enough, and their eigenbasis.

The state of a parameter gains ``row_basis`` and ``col_basis`` (eigenvectors of each dense side, the identity until the
first decomposition) and, for ``second_moment="rotated"``, one full-size average. Both uses of a tied weight share a
basis, that of the sum of their factors; their products in it still add up.
"""

from __future__ import annotations

import logging
from collections import defaultdict

import torch
from torch import Tensor

from ..kernels.divisor import Basis, Divisor
from .layers import Layout
from .modes import Calibrated, State, _ratio, diagonal

logger = logging.getLogger(__name__)

SIDES = ("row", "col")


class Kronecker(Calibrated):
    """Calibrated curvature in the eigenbasis of dense factors.

    Args:
        max_factor_dim: a side longer than this keeps a diagonal factor.
        rotated: the curvature in the basis is an EMA of the squared rotated gradient, not a product of eigenvalues,
            where both sides are dense. (Rows of an embedding are too unlike each other for it: measured, 0.6 nats.)
        decay: of that EMA.
    """

    def __init__(self, max_factor_dim: int, rotated: bool, decay: float):
        self.max_factor_dim, self.rotated, self.decay = max_factor_dim, rotated, decay

    def dense_sides(self, layout: Layout) -> tuple[str, ...]:
        """Which sides of a matrix get a full factor; vectors (biases, norms) stay diagonal."""
        if layout.elementwise or layout.col == "unit":
            return ()
        lengths = zip(SIDES, layout.shape[1:], strict=True)
        return tuple(side for side, length in lengths if 1 < length <= self.max_factor_dim)

    def init(self, state: State, index: int, layout: Layout, like: Tensor) -> None:
        super().init(state, index, layout, like)
        for side in self.dense_sides(layout):
            length = state[f"{side}_factor_{index}"].shape[-1]
            state[f"{side}_factor_{index}"] = like.new_zeros(layout.shape[0], length, length)
            eye = torch.eye(length, dtype=like.dtype, device=like.device)
            state[f"{side}_basis"] = eye.repeat(layout.shape[0], 1, 1)
        if self.rotated and self.dense_sides(layout) == SIDES:
            state["rotated_sq"] = like.new_zeros(layout.shape, dtype=state["exp_avg"].dtype)

    @torch.no_grad()
    def update_bases(self, states: list[tuple[State, list[Layout]]]) -> None:
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

    def divisor(self, state: State, layouts: list[Layout], damping: float) -> Divisor:
        basis = Basis(state.get("row_basis"), state.get("col_basis"))
        if basis == Basis():
            return super().divisor(state, layouts, damping)
        owners = range(len(layouts))
        rows = [_in_basis(state, "row", k) for k in owners]
        cols = [_in_basis(state, "col", k) for k in owners]
        divisor = self._normalised(rows, cols, layouts[0], damping)
        second_moment = state.get("rotated_sq")
        if second_moment is not None:
            damped = torch.full_like(divisor.damping, damping)
            return Divisor(divisor.rows, divisor.cols, damped, basis, second_moment, self.decay)
        return Divisor(divisor.rows, divisor.cols, divisor.damping, basis)

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
            logger.warning("a Kronecker factor kept its old basis: %s", error)
            return torch.full_like(matrix, float("nan"))


def _pooled_factor(state: State, side: str, owners: int) -> Tensor:
    """Σ_k factor_k · mean(other side)_k: the factor of this side, of all owners of a tied weight together."""
    other = SIDES[1 - SIDES.index(side)]
    terms = []
    for k in range(owners):
        weight = state[f"factor_weight_{k}"]
        share = _ratio(diagonal(state[f"{other}_factor_{k}"]).mean(-1, keepdim=True), weight)
        terms.append(_ratio(state[f"{side}_factor_{k}"], weight.unsqueeze(-1)) * share.unsqueeze(-1))
    return torch.stack(terms).sum(0)


def _in_basis(state: State, side: str, k: int) -> Tensor:
    """diag(Qᵀ F Q), the factor's curvature along each basis vector; of a diagonal factor, the factor."""
    factor, weight, basis = state[f"{side}_factor_{k}"], state[f"factor_weight_{k}"], state.get(f"{side}_basis")
    if basis is not None:
        factor = (basis * (factor @ basis)).sum(-2).clamp_(min=0.0)
    return _ratio(factor, weight)


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
