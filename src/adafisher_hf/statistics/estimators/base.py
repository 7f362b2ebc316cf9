"""What an estimator is. Adding one: a file here and its line in ESTIMATORS.

Σ h² is taken in the forward pass, before any gradient is known, so what an estimator decides reaches S alone. For the
Fisher of a layer, E[hhᵀ] ⊗ E[δδᵀ], that is right: H has no gradient in it.
"""

from __future__ import annotations

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
