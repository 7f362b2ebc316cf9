"""Which learning rate an arm gets: the same grid and the same rule for every arm."""

from __future__ import annotations

from collections.abc import Callable

GRID = (1e-3, 3e-3, 6e-3, 1e-2)
BELOW = (3e-4, 1e-4)
ABOVE = (3e-2, 1e-1, 3e-1)


def tune(loss_at: Callable[[float], float]) -> dict[float, float]:
    """The loss at each learning rate that was tried, in ascending order.

    The grid grows while its best rate lies on an edge: an arm whose rates live elsewhere is not judged by the others'.
    """
    losses = {lr: loss_at(lr) for lr in GRID}
    for rungs, edge in ((ABOVE, max), (BELOW, min)):
        for lr in rungs:
            if best(losses) != edge(losses):
                break
            losses[lr] = loss_at(lr)
    return dict(sorted(losses.items()))


def best(losses: dict[float, float]) -> float:
    return min(losses, key=losses.__getitem__)
