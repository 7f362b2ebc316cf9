"""Capture under torch.compile: one opaque operator in the backward graph, and no graph break.

What a hook would keep is traced as an identity on the layer's output. Its backward pass hands δ, and the input that
the layer's own backward pass needs anyway, to an operator that the compiler does not look into; there the layer is
measured as in eager mode. Whether the step refreshes is decided inside, at run time, so nothing is compiled anew.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Replay = Callable[[Tensor, Tensor, "Tensor | None"], None]  # of δ, the layer's input, and the padding mask

# Kept where the operator itself is kept: a second import of this module replaces the operator, and must find the
# observers of the first.
_shared: dict[str, Any] = vars(torch.ops.adafisher_hf)
_observers: weakref.WeakValueDictionary[int, Observer] = _shared.setdefault("_observers", weakref.WeakValueDictionary())
_keys: itertools.count[int] = _shared.setdefault("_keys", itertools.count())


class Observer:
    """Whom a compiled graph tells of a layer's backward pass, under a number that the graph can hold.

    Args:
        replay: a bound method, which is not kept alive.
        device: of the layer.
    """

    def __init__(self, replay: Replay, device: torch.device):
        self._replay = weakref.WeakMethod(replay)
        self._key = next(_keys)
        # Written to by the operator, or the compiler would drop it as dead code.
        self._anchor = torch.zeros(1, device=device)
        _observers[self._key] = self

    def observe(self, output: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        """The output itself, whose gradient will be measured."""
        return _Identity.apply(output, x, mask, self._anchor, self._key)

    def tell(self, grad: Tensor, x: Tensor, mask: Tensor | None) -> None:
        """Passes on what the backward pass has brought."""
        replay = self._replay()
        if replay is not None:
            replay(grad, x, mask)


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, mask: Tensor | None, anchor: Tensor, key: int) -> Tensor:
        ctx.save_for_backward(x, mask)
        ctx.anchor, ctx.key = anchor, key
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, mask = ctx.saved_tensors
        _measure(grad, x, mask, ctx.anchor, ctx.key)
        return grad, None, None, None, None


@torch.library.custom_op("adafisher_hf::measure", mutates_args={"anchor"})
def _measure(grad: Tensor, x: Tensor, mask: Tensor | None, anchor: Tensor, key: int) -> None:
    observer = _observers.get(key)
    if observer is not None:
        observer.tell(grad, x, mask)
