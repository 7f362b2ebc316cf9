"""How an arm is set: the same ladders and the same rule for every arm, one number after the other.

From where it stands, an arm tries the next rung above and below and goes on in the better direction until both
neighbours are worse: learning rate, momentum, ratio of the tables' learning rate, then the learning rate once more.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from .arms import Arm, Point

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 6e-3, 1e-2, 2e-2, 3e-2, 6e-2, 1e-1, 3e-1)
COORDINATES = ("lr", "momentum", "ratio", "lr")
USUAL_RUNS = 2.5  # a coordinate, of an arm that starts near its best

Search = Generator[list[Point], list[float], dict[Point, float]]


def tune(arm: Arm, start: Point, coordinates: Sequence[str] = COORDINATES) -> Search:
    """Yields points, is sent the loss at each, and returns the losses of all points."""
    ladders: dict[str, Sequence[Any]] = {"lr": RATES, "momentum": arm.momenta, "ratio": arm.ratios}
    losses: dict[Point, float] = {}
    point = start
    for name in coordinates:
        point = yield from _walk(point, name, ladders[name], losses)
    return losses


def best(losses: dict[Any, float]) -> Any:
    return min(losses, key=losses.__getitem__)


def _walk(
    point: Point, name: str, ladder: Sequence[Any], losses: dict[Point, float]
) -> Generator[list[Point], list[float], Point]:
    while True:
        rung = ladder.index(getattr(point, name))
        around = [replace(point, **{name: value}) for value in ladder[max(0, rung - 1) : rung + 2]]
        new = [neighbour for neighbour in around if neighbour not in losses]
        if new:
            losses.update(zip(new, (yield new), strict=True))
        # A step only where it is a gain: on a plain of infinities the walk would go round in circles.
        top = min(around, key=losses.__getitem__)
        if losses[top] >= losses[point]:
            return point
        point = top
