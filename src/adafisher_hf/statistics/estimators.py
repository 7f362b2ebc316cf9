"""Of which gradients S is the second moment. Adding an estimator: a class and its line in ESTIMATORS.

Σ h² is taken in the forward pass, before any gradient is known, so what an estimator decides reaches S alone. For the
Fisher of a layer, E[hhᵀ] ⊗ E[δδᵀ], that is right: H has no gradient in it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Estimator:
    """What a token's δ weighs in S, and whether there is a backward pass for the statistics alone.

    Attributes:
        weighs_tokens: ``token_weights`` is asked in every backward pass, when the gradient of the logits arrives, which
            is before any layer below them has its δ.
        has_own_pass: ``own_loss`` is asked in every forward pass whose statistics are wanted; S is then taken from its
            backward pass, and from no other.
    """

    weighs_tokens = False
    has_own_pass = False

    def token_weights(self, logits_grad: Tensor) -> Tensor:
        """What to multiply into the δ of every token.

        Args:
            logits_grad: (batch, tokens, classes) or (batch, classes), without a loss scale.

        Returns:
            (batch, tokens), or (batch,) for all tokens of an example.
        """
        raise NotImplementedError

    def own_loss(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        """The loss whose backward pass gives S.

        Args:
            logits: of the running forward pass, (batch, tokens, classes) or (batch, classes).
            mask: which tokens are not padding, (batch · tokens,); None: all.

        Returns:
            Shape ().
        """
        raise NotImplementedError


class Empirical(Estimator):
    """The gradients of the training loss itself: δ as it comes (Martens 2020, the empirical Fisher)."""


class Improved(Estimator):
    """δ / ‖∂ℓ/∂z‖ with z the logits: what is predicted well counts as much as the rest (Wu et al. 2024, eq. 43).

    ∂ℓ/∂z is p - y, and 0 where there is no label: such a token weighs nothing. With a weight for every token this is
    exact where a token's δ has no other token's loss in it, and an approximation below attention.
    """

    weighs_tokens = True

    def token_weights(self, logits_grad: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(logits_grad, dim=-1, dtype=_at_least_float32(logits_grad))
        return torch.where(length > 0, 1 / length, torch.zeros_like(length))


class Sampled(Estimator):
    """Labels drawn from the model's own prediction: an estimate of the Fisher itself (Martens 2020, section 5).

    One output is the mean of a normal distribution of variance 1. Takes a backward pass more a refresh.
    """

    has_own_pass = True

    def own_loss(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        flat = logits.flatten(0, -2)
        if flat.shape[-1] == 1:
            losses = flat[:, 0] * torch.randn_like(flat[:, 0])
        else:
            drawn = torch.distributions.Categorical(logits=flat.detach().to(_at_least_float32(flat))).sample()
            losses = nn.functional.cross_entropy(flat, drawn, reduction="none")
        return losses.mean() if mask is None else (losses * mask).sum() / mask.sum().clamp(min=1)


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


# A class, or "module:Class" of a module of this package, which is imported when it is used.
ESTIMATORS: dict[str, str | Callable[[], Estimator]] = {
    "empirical": Empirical,
    "improved": Improved,
    "sampled": Sampled,
}


def make_estimator(name: str) -> Estimator:
    """The estimator of this name."""
    target = ESTIMATORS[name]
    return (pkgutil.resolve_name(f"{__package__}.{target}") if isinstance(target, str) else target)()


def estimator_names() -> tuple[str, ...]:
    """What ``estimator`` may be."""
    return tuple(ESTIMATORS)


def logits_of(output: Any) -> Any:
    """The logits in what a model returns: ``output.logits``, its first element, or itself."""
    logits = getattr(output, "logits", None)
    if logits is not None:
        return logits
    return output[0] if isinstance(output, tuple) and output else output
