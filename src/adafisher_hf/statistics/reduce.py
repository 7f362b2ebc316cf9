"""Adds the statistics of all ranks up: one flat all-reduce of raw sums a refresh, and nothing on other steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .sums import Sums
from .tap import Tap


@torch.no_grad()
def reduce_over_ranks(
    taps: Sequence[Tap], dtype: torch.dtype, device: torch.device, ranks: dist.ProcessGroup | None = None
) -> None:
    """Gives every tap the sums of all ranks; one that fired on none keeps None.

    The layout of the message depends on the model alone, because ranks differ in what fired (LayerDrop, experts).
    A rank where something did not fire waits for the device, to learn whether it did elsewhere.

    Args:
        taps: in the same order on all ranks.
        dtype: of the message.
        device: of the message; the backend must know it.
        ranks: that take part; None: all.
    """
    if not taps:
        return
    flat = torch.cat([part.to(device, dtype) for tap in taps for part in _parts(tap, dtype, device)])
    dist.all_reduce(flat, group=ranks)
    silent = torch.tensor([tap.sums is None for tap in taps])
    received = [_unpack(tap, numbers) for tap, numbers in zip(taps, flat.split(_lengths(taps)), strict=True)]
    fired = [True] * len(taps)
    if silent.any():
        fired = (torch.stack([count for _, count in received]) > 0).tolist()
    for tap, (sums, _), anywhere in zip(taps, received, fired, strict=True):
        tap.sums = sums if anywhere else None


def message_length(taps: Iterable[Tap]) -> int:
    """How many numbers a refresh sends."""
    return sum(_lengths(taps))


def _lengths(taps: Iterable[Tap]) -> list[int]:
    return [sum(length for _, _, length in _sides(tap)) + torch.Size(tap.count_shape).numel() + 1 for tap in taps]


def _sides(tap: Tap) -> Iterator[tuple[str, tuple[int, ...], int]]:
    for side, shape in tap.shapes.items():
        yield side, shape, torch.Size(shape).numel()


def _parts(tap: Tap, dtype: torch.dtype, device: torch.device) -> Iterator[Tensor]:
    """Both sums, the numbers of tokens, and 1 if the tap fired."""
    if tap.sums is None:
        yield torch.zeros(_lengths([tap])[0], dtype=dtype, device=device)
        return
    for side, _, _ in _sides(tap):
        yield getattr(tap.sums, side).reshape(-1)
    yield tap.sums.tokens.reshape(-1)
    yield tap.sums.tokens.new_ones(1)


def _unpack(tap: Tap, numbers: Tensor) -> tuple[Sums, Tensor]:
    values, start = {}, 0
    for side, shape, length in _sides(tap):
        values[side] = numbers[start : start + length].view(shape).to(tap.dtype)
        start += length
    unused = numbers.new_zeros(tap.stack, 1, dtype=tap.dtype)
    tokens = numbers[start:-1].view(tap.count_shape).to(tap.dtype)
    return Sums(values.get("input", unused), values.get("output", unused), tokens), numbers[-1]
