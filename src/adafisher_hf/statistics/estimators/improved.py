"""estimator=improved: each token's gradient in units of that of its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Estimator


class Improved(Estimator):
    """δ / ‖∂ℓ/∂z‖ with z the logits: what is predicted well counts as much as the rest (Wu et al. 2024, eq. 43).

    ∂ℓ/∂z is p - y, and 0 where there is no label: such a token weighs nothing. With a weight for every token this is
    exact where a token's δ has no other token's loss in it, and an approximation below attention.
    """

    weighs_tokens = True

    def token_weights(self, logits_grad: Tensor) -> Tensor:
        dtype = torch.promote_types(logits_grad.dtype, torch.float32)
        length = torch.linalg.vector_norm(logits_grad, dim=-1, dtype=dtype)
        return torch.where(length > 0, 1 / length, torch.zeros_like(length))
