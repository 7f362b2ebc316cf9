"""SOAP, then Muon: Adam's step in the eigenbasis of the gradient's own covariances, made orthogonal.

The second moment is that of SOAP (arXiv 2409.11321): the basis follows the covariances by one QR power step every
``INTERVAL`` steps, columns by falling eigenvalue. A side longer than ``LONGEST`` keeps its own basis.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .matrices import MatrixOptimizer
from .newton_schulz import orthogonalize

BETA2 = 0.95
EPS = 1e-8
INTERVAL = 10
LONGEST = 1024
SIDES = (-2, -1)


class SoapMuon(MatrixOptimizer):
    def direction(self, state: dict[str, Any], gradient: Tensor, momentum: Tensor) -> Tensor:
        self._follow(state, gradient)
        squares = _rotate(state, gradient).square_()
        if "second_moment" not in state:
            state["second_moment"], state["age"] = torch.zeros_like(gradient), 0
        state["second_moment"].lerp_(squares, 1 - BETA2)
        state["age"] += 1
        # The bias of the average is one number for all entries, which the orthogonalization takes out.
        adam = _rotate(state, momentum).div_(state["second_moment"].sqrt().add_(EPS))
        return orthogonalize(_rotate(state, adam, back=True))

    def _follow(self, state: dict[str, Any], gradient: Tensor) -> None:
        """Takes the gradient into the covariances, and now and then turns the bases after them."""
        for side in SIDES:
            if gradient.shape[side] > LONGEST:
                continue
            matrix = gradient if side == -2 else gradient.mT
            new = matrix @ matrix.mT
            if f"basis{side}" not in state:
                state[f"covariance{side}"] = new * (1 - BETA2)
                state[f"basis{side}"] = torch.linalg.eigh(new)[1].flip(-1)
                continue
            state[f"covariance{side}"].lerp_(new, 1 - BETA2)
            if state["age"] % INTERVAL == 0:
                self._turn(state, side)

    def _turn(self, state: dict[str, Any], side: int) -> None:
        basis = state[f"basis{side}"]
        product = state[f"covariance{side}"] @ basis
        order = (basis * product).sum(-2).argsort(-1, descending=True)
        state[f"basis{side}"] = torch.linalg.qr(product.take_along_dim(order.unsqueeze(-2), -1))[0]
        along = order.unsqueeze(-1) if side == -2 else order.unsqueeze(-2)
        state["second_moment"] = state["second_moment"].take_along_dim(along, side)


def _rotate(state: dict[str, Any], stack: Tensor, back: bool = False) -> Tensor:
    rows, columns = state.get("basis-2"), state.get("basis-1")
    if rows is not None:
        stack = (rows if back else rows.mT) @ stack
    return stack if columns is None else stack @ (columns.mT if back else columns)
