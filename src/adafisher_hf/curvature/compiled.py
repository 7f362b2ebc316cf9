"""Capture under torch.compile: one opaque operator in the backward graph, and no graph break.

What a hook would keep is traced as an identity on the layer's output. Its backward pass hands δ, and the input that
the layer's own backward pass needs anyway, to an operator that the compiler does not look into; there the tap measures
as in eager mode. Whether the step refreshes is decided inside, at run time, so nothing is compiled anew.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .capture import Tap

# Kept where the operator itself is kept: a second import of this module replaces the operator, and must find the
# observers of the first.
_shared: dict[str, Any] = vars(torch.ops.adafisher_hf)
_observers: weakref.WeakValueDictionary[int, Observer] = _shared.setdefault("_observers", weakref.WeakValueDictionary())
_keys: itertools.count[int] = _shared.setdefault("_keys", itertools.count())


class Observer:
    """A tap and its module, under a number that a compiled graph can hold."""

    def __init__(self, tap: Tap, module: nn.Module):
        self._tap, self._module = weakref.ref(tap), weakref.ref(module)
        self._key = next(_keys)
        # Written to by the operator, or the compiler would drop it as dead code.
        self._anchor = torch.zeros(1, device=next(module.parameters()).device)
        _observers[self._key] = self

    def observe(self, output: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        """The output itself, whose gradient will be measured."""
        return _Identity.apply(output, x, mask, self._anchor, self._key)

    def measure(self, grad: Tensor, x: Tensor, mask: Tensor | None) -> None:
        tap, module = self._tap(), self._module()
        if tap is None or module is None or not tap.gate.active:
            return
        measured = tap.measure(module, (x,), grad, mask)
        if measured is not None:
            tap.backward(module, *measured, grad)


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
        observer.measure(grad, x, mask)
