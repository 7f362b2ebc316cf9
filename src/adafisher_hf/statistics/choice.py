"""Which tokens are measured: by their place in the sequence and the step alone, never by how a batch was cut."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..layers import OneHot, Tokens

STRIDE = 4


class Choice(NamedTuple):
    """The tokens at the places ``start``, ``start + stride``, … of every sequence. Each stands for ``stride`` tokens.

    Attributes:
        stride: 1: all of them.
        start: from one refresh to the next it moves by one.
        length: of a sequence, in tokens; padding counts.
    """

    stride: int = 1
    start: int = 0
    length: int = 1

    def of(self, tokens: Tokens) -> Tokens:
        """Those of (stack, sequences · length, features), or of ids in that order."""
        if isinstance(tokens, OneHot):
            return OneHot(self.of_flat(tokens.ids), tokens.size)
        if self.stride == 1:
            return tokens
        return tokens.unflatten(1, (-1, self.length))[:, :, self.start :: self.stride].flatten(1, 2)

    def of_flat(self, x: Tensor) -> Tensor:
        """Those of (sequences · length,)."""
        if self.stride == 1:
            return x
        return x.view(-1, self.length)[:, self.start :: self.stride].flatten()


def automatic_stride(tokens: int, longest: int) -> int:
    """Every fourth token, or more of them where a dense factor of this length would get fewer tokens than it has rows.

    Measured: more tokens than that bring nothing, fewer cost a third of a nat.

    Args:
        tokens: of a whole step, of all micro-batches and ranks together.
        longest: side of a dense factor.
    """
    return min(STRIDE, max(1, tokens // max(1, longest)))
