"""estimator=sampled: labels drawn from the model's own prediction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import Estimator


class Sampled(Estimator):
    """An estimate of the Fisher itself (Martens 2020, section 5), at a backward pass more a refresh.

    One output is the mean of a normal distribution of variance 1.
    """

    has_own_pass = True

    def own_loss(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        flat = logits.flatten(0, -2)
        if flat.shape[-1] == 1:
            losses = flat[:, 0] * torch.randn_like(flat[:, 0])
        else:
            wide = flat.detach().to(torch.promote_types(flat.dtype, torch.float32))
            drawn = torch.distributions.Categorical(logits=wide).sample()
            losses = nn.functional.cross_entropy(flat, drawn, reduction="none")
        return losses.mean() if mask is None else (losses * mask).sum() / mask.sum().clamp(min=1)
