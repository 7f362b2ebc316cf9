"""How many tokens a step has, kept in the optimizer's state: a resumed run measures the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .block import Block
from .tap import Tap

TOKENS = "tokens"  # key of the state: one number a tap of the parameter, 0 where it is not known yet


def keep_token_counts(states: Mapping[Tensor, dict[str, Any]], blocks: Iterable[Block]) -> None:
    """Writes down what the taps have counted, where the state has a place for it."""
    for block in blocks:
        numbers = states.get(block.parameter, {}).get(TOKENS)
        if numbers is not None:
            numbers.copy_(numbers.new_tensor([tap.expected or 0 for tap in block.taps]))


def restore_token_counts(states: Mapping[Tensor, dict[str, Any]], blocks: Iterable[Block]) -> None:
    """Gives the taps what a loaded state says. Waits for the device."""
    saved = [(block, states.get(block.parameter, {}).get(TOKENS)) for block in blocks]
    found = [(tap, count) for block, numbers in saved if numbers is not None for tap, count in _counts(block, numbers)]
    for tap, _ in found:
        tap.expected = None
    # A weight and its bias share a tap, and one that was unfrozen later may not have heard of it.
    for tap, count in found:
        if count:
            tap.expected = count


def _counts(block: Block, numbers: Tensor) -> list[tuple[Tap, int]]:
    return list(zip(block.taps, map(int, numbers.tolist()), strict=True))
