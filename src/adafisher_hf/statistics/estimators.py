"""Of which gradients S is the second moment. Adding an estimator: a class and its line in ESTIMATORS.

Σ h² is taken in the forward pass, before any gradient is known, so what an estimator decides reaches S alone. For the
Fisher of a layer, E[hhᵀ] ⊗ E[δδᵀ], that is right: H has no gradient in it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


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

    def own_loss(self, logits: Tensor) -> Tensor:
        """The loss whose backward pass gives S, shape (), from the logits of the running forward pass."""
        raise NotImplementedError


class Empirical(Estimator):
    """The gradients of the training loss itself: δ as it comes (Martens 2020, the empirical Fisher)."""


# A class, or "module:Class" of a module of this package, which is imported when it is used.
ESTIMATORS: dict[str, str | Callable[[], Estimator]] = {
    "empirical": Empirical,
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
