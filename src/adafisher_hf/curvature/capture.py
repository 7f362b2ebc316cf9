"""Hooks that turn a backward pass into sums of h² and δ² per layer.

A forward hook takes Σh² at once and holds on to that small vector only; a hook on the output tensor takes Σδ² when its
gradient arrives and commits the pair. A forward pass without a backward pass therefore leaves no trace, and a
recomputed one (activation checkpointing) is counted once. Under torch.compile all of it happens in the backward pass,
see ``compiled``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .compiled import Observer
from .factors import Sums, automatic_stride, every, second_moment
from .layers import LayerKind, Layout, OneHot, Rows, wide
from .padding import Padding


@dataclass
class Gate:
    """What all taps of a model share. Nothing here refers to the optimizer, so that hooks cannot keep it alive."""

    padding: Padding
    stride: int | None = 1  # statistics of every so many tokens; None: of as many as dense factors need
    active: bool = True
    inverse_scale: Callable[[], Tensor | float] | None = None  # of the loss scaler, where the mode needs it
    last_input: tuple | None = None  # (weak reference, version, kind of moment) and moment of the last input


class Tap:
    """The statistics of one module since the last ``take``.

    Copies of a module, and pickled ones, come without: their tap is a retired one that measures nothing.
    """

    retired = False
    sums: Sums | None = None

    def __init__(self, kind: LayerKind, gate: Gate, mask_name: str):
        self.kind, self.gate, self.mask_name = kind, gate, mask_name
        self.dense: set[str] = set()  # "input" and "output" where a block wants the full factor
        self.shapes: dict[str, tuple[int, ...]] = {}  # of the sums that a block wants, by side
        self.stack = 1
        self.dtype = torch.float32  # of the sums

    def want(self, layout: Layout, dense: Iterable[str]) -> None:
        """A block reads these statistics; ``dense`` names the sides whose full factor it needs."""
        self.stack = layout.shape[0]
        if set(dense) - self.dense:
            self.dense |= set(dense)
            self.sums = None  # what was measured so far has another shape
        for side, length in layout.lengths().items():
            full = (length, length) if side in self.dense else (length,)
            self.shapes[side] = (self.stack, *full)

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """Of the number of tokens."""
        return ()

    def attach(self, module: nn.Module) -> Any:
        """Starts to watch a module, until ``remove()`` is called on what is returned."""
        self.observer = Observer(self, module)
        return module.register_forward_hook(self.forward, with_kwargs=True)

    def take(self) -> Sums | None:
        """Hands out the sums and starts anew; None where no backward pass reached this module."""
        sums, self.sums = self.sums, None
        return sums

    def forward(self, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
        if self.retired or not isinstance(output, Tensor) or not output.requires_grad:
            return None
        if not any(p.requires_grad for p in module._parameters.values() if p is not None):
            return None
        args = args or tuple(kwargs.values())
        if torch.compiler.is_compiling():
            mask = self.gate.padding.mask(self.mask_name, self.kind.tokens(module, args, output))
            return self.observer.observe(output, args[0], mask)
        if self.gate.active:
            measured = self.measure(module, args, output)
            if measured is not None:
                output.register_hook(partial(self.backward, module, *measured))
        return None

    def stride(self, tokens: int) -> int:
        """Every how-many-th of so many tokens is measured."""
        if self.gate.stride is not None:
            return self.gate.stride
        return automatic_stride(tokens, max((self.shapes[side][-1] for side in self.dense), default=0))

    @torch.no_grad()
    def measure(
        self, module: nn.Module, args: tuple, output: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, int] | None:
        """Σh² (or Σhhᵀ), the weight of every token that counts, and the stride that picked them."""
        with full_precision(output):
            return self._measure(module, args, output, mask)

    def _measure(
        self, module: nn.Module, args: tuple, output: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, int] | None:
        rows = self.kind.inputs(module, args, output)
        if rows is None:
            return None
        tokens = self.kind.tokens(module, args, output)
        # Rows that stand for whole examples (a pooled classifier's) are few, and all count.
        stride = 1 if tokens is not None and len(tokens) < 2 else self.stride(_count(rows))
        mask = self.gate.padding.mask(self.mask_name, tokens) if mask is None else mask
        # Each one stands for the tokens that were skipped: another use of the weight may skip none.
        weights = self._weights(module, mask, output, rows)[::stride] * stride
        rows = every(rows, stride)
        if output.dtype is torch.bfloat16 and isinstance(rows, Tensor) and "input" in self.dense:
            rows = rows.to(torch.bfloat16)  # under autocast the layer's own product rounds them too
        return self._input_moment(args[0], rows, weights), weights, stride

    @torch.no_grad()
    def backward(self, module: nn.Module, inputs: Tensor, weights: Tensor, stride: int, grad_output: Tensor) -> None:
        rows = every(self.kind.outputs(module, grad_output), stride)
        with full_precision(grad_output):
            outputs = second_moment(rows, weights, "output" in self.dense)
        if self.gate.inverse_scale is not None:
            outputs = outputs * self.gate.inverse_scale() ** 2
        self.commit(Sums(inputs, outputs, weights.sum()))

    def commit(self, new: Sums) -> None:
        """Adds a call's sums, unless they are not finite."""
        finite = torch.isfinite(new.input.sum() + new.output.sum())
        for name, value in vars(new).items():
            value = torch.where(finite, value, torch.zeros_like(value))
            setattr(new, name, value if self.sums is None else getattr(self.sums, name) + value)
        self.sums = new

    def _input_moment(self, x: Tensor, rows: Rows, weights: Tensor) -> Tensor:
        """Σh² or Σhhᵀ; query, key and value (and gate and up) read the same input, which is measured once."""
        dense = "input" in self.dense
        if not dense:
            return second_moment(rows, weights, dense)
        key = (self.kind.name, self.mask_name, len(weights), getattr(rows, "dtype", None))
        if self.gate.last_input is not None:
            reference, version, seen, moment = self.gate.last_input
            if reference() is x and version == x._version and seen == key:
                return moment
        moment = second_moment(rows, weights, dense)
        self.gate.last_input = (weakref.ref(x), x._version, key, moment)
        return moment

    def _weights(self, module: nn.Module, mask: Tensor | None, output: Tensor, rows: Rows) -> Tensor:
        dtype = wide(output.dtype)
        weights = (
            output.new_ones(_count(rows), dtype=dtype) if mask is None else mask.to(output.device, dtype).reshape(-1)
        )
        if isinstance(rows, OneHot) and getattr(module, "padding_idx", None) is not None:
            weights = weights * (rows.ids != module.padding_idx)  # these rows get no gradient
        return weights

    def __deepcopy__(self, memo: dict) -> Tap:
        return _retired_tap(type(self))

    def __reduce__(self) -> tuple:
        return _retired_tap, (type(self),)


def _count(rows: Rows) -> int:
    return rows.ids.numel() if isinstance(rows, OneHot) else rows.shape[1]


def full_precision(x: Tensor) -> torch.autocast:
    """No autocast: hooks run inside the user's, where products of float32 would be rounded, and squares overflow."""
    return torch.autocast(x.device.type, enabled=False)


def _retired_tap(cls: type[Tap]) -> Tap:
    tap = cls.__new__(cls)
    tap.retired = True
    return tap
