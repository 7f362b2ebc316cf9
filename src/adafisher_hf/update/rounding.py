"""How an update gets into weights that have fewer digits than it has."""

from __future__ import annotations

import torch
from torch import Tensor


def subtract(param: Tensor, update: Tensor, compensation: Tensor | None) -> None:
    """param ← param - update, in place, by Kahan's summation (1965) where there is a compensation; ``update`` is lost.

    Args:
        param: in half precision if there is a compensation.
        update: in the state's wide dtype.
        compensation: the part of the exact weight that ``param`` has no digits for; updated in place.
    """
    if compensation is None:
        param.sub_(update)
        return
    resting = update == 0  # rounding once more might move a weight that lies half way between two others
    exact = update.neg_().add_(param).add_(compensation)
    param.copy_(torch.where(resting, param.to(exact.dtype), exact))
    compensation.copy_(exact.sub_(param))
