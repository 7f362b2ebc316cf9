"""Documents are held out whole: neighbouring sentences on both sides of a split would give the answers away."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

Document = TypeVar("Document")


def hold_out(documents: Sequence[Document], *shares: float, seed: int = 0) -> tuple[list[Document], ...]:
    """Splits off a random part of each share: the parts in the order of the shares, then the rest.

    The first part does not depend on the shares that follow, so two programs can have the same evaluation set.
    Every part and the rest have at least one document where there are enough.

    Raises:
        ValueError: the shares leave nothing over.
    """
    if not all(share > 0 for share in shares) or sum(shares) >= 1:
        raise ValueError(f"shares must be positive and sum to less than 1, got {shares}")
    shuffled = random.Random(seed).sample(documents, len(documents))
    parts, start = [], 0
    for share in shares:
        count = max(1, round(share * len(documents)))
        parts.append(shuffled[start : start + count])
        start += count
    return (*parts, shuffled[start:])
