"""Hooks that turn a backward pass into sums of h² and δ² of one layer.

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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..compat import in_function_transform, parameters_of, version_of
from ..layers import LayerKind, Layout, OneHot, Tokens, accumulation_dtype
from .choice import Choice, automatic_stride
from .compiled import Observer
from .padding import Padding
from .sums import Sums, count, second_moment


@dataclass
class Gate:
    """What all taps of a model share. Nothing here refers to the optimizer, so that hooks cannot keep it alive.

    Attributes:
        padding: which tokens count.
        stride: statistics of every so many tokens; None: of as many as dense factors need.
        sequence: how many tokens the running forward pass has in a row; None: not known, or more than one kind of them.
        turn: how many refreshes there were before the next one: it moves the choice of tokens.
        active: whether this step refreshes.
        inverse_scale: of the loss scaler, where the preconditioner needs δ without it.
        last_input: the moment that was taken last, and of what.
        token_weights: what the estimator multiplies into δ, (batch, tokens) or (batch,); None: nothing.
        awaits_weights: the estimator weighs tokens, so there must be weights when a δ arrives.
        awaits_own_pass: S comes from a backward pass of the estimator's; all others are let pass by.
        in_own_pass: that one is running now.
    """

    padding: Padding
    stride: int | None = 1
    sequence: int | None = None
    turn: int = 0
    active: bool = True
    inverse_scale: Callable[[], Tensor | float] | None = None
    last_input: LastInput | None = None
    token_weights: Tensor | None = None
    awaits_weights: bool = False
    awaits_own_pass: bool = False
    in_own_pass: bool = False

    @property
    def takes_gradients(self) -> bool:
        """Whether the δ that arrive now are the ones that count."""
        return self.active and self.in_own_pass == self.awaits_own_pass

    def weights_of(self, tokens: Tensor | int) -> Tensor | None:
        """The estimator's weights: of so many tokens in their order, or of those at the given places; None: all 1.

        A weight of an example is that of all its tokens. What all examples share (a table of positions) has none.

        Raises:
            ValueError: the gradient of the logits was not seen, or not that of all of them.
        """
        if not self.awaits_weights:
            return None
        if self.token_weights is None:
            raise ValueError(no_logits("improved"))
        flat = self.token_weights.reshape(-1)
        if isinstance(tokens, Tensor):
            return flat[tokens]
        if tokens < len(flat) and len(flat) % tokens == 0:
            return None
        if tokens % len(flat) or (self.token_weights.dim() > 1 and tokens != len(flat)):
            raise ValueError(f"{no_logits('improved')} (a layer with {tokens} tokens, {len(flat)} rows of logits)")
        return flat.repeat_interleave(tokens // len(flat))


def no_logits(estimator: str) -> str:
    """Why an estimator cannot work."""
    return (
        f"estimator={estimator} needs the logits of all tokens as the model's head makes them, and did not see them: "
        "switch fused or chunked losses (use_liger_kernel) and torch.compile off, or use estimator=empirical"
    )


class LastInput(NamedTuple):
    """Query, key and value (and gate and up) read the same tensor: its moment is taken once.

    Attributes:
        reference: to the tensor.
        version: how often it had been written to.
        key: everything else that the moment depends on.
        moment: Σ hhᵀ.
    """

    reference: weakref.ref[Tensor]
    version: int
    key: tuple
    moment: Tensor

    def is_of(self, x: Tensor, key: tuple) -> bool:
        return self.reference() is x and self.version == version_of(x) and self.key == key


class Measured(NamedTuple):
    """What is known of a call before its gradient arrives.

    Attributes:
        inputs: Σ h² or Σ hhᵀ.
        weights: of every token: 0 for padding.
        choice: of the tokens, for dense factors.
    """

    inputs: Tensor
    weights: Tensor
    choice: Choice


class Tap:
    """The statistics of one module since the last ``take``.

    Copies of a module, and pickled ones, come without: their tap is a retired one that measures nothing.
    """

    retired = False
    sums: Sums | None = None
    moment = staticmethod(second_moment)  # what is summed over the tokens

    def __init__(self, kind: LayerKind, gate: Gate, mask_name: str):
        self.kind, self.gate, self.mask_name = kind, gate, mask_name
        self.dense: set[str] = set()  # "input" and "output" where a block wants the full factor
        self.shapes: dict[str, tuple[int, ...]] = {}  # of the sums that a block wants, by side
        self.stack = 1
        self.dtype = torch.float32  # of the sums
        self.expected: int | None = None  # tokens a step, as its first refresh has counted them on all ranks

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
    def count_shape(self) -> tuple[int, ...]:
        """Of the number of tokens."""
        return ()

    def attach(self, module: nn.Module) -> Any:
        """Starts to watch a module, until ``remove()`` is called on what is returned."""
        self._module = weakref.ref(module)
        self._observer = Observer(self.replay, next(module.parameters()).device)
        return module.register_forward_hook(self.forward, with_kwargs=True)

    def take(self) -> Sums | None:
        """Hands out the sums and starts anew; None where no backward pass reached this module."""
        sums, self.sums = self.sums, None
        return sums

    def forward(self, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
        """The forward hook."""
        if self.retired or not isinstance(output, Tensor) or not output.requires_grad or in_function_transform():
            return None
        if not any(p.requires_grad for p in parameters_of(module).values() if p is not None):
            return None
        args = args or tuple(kwargs.values())
        if torch.compiler.is_compiling():
            mask = self.gate.padding.mask(self.mask_name, self.kind.token_shape(module, args, output), args[0])
            return self._observer.observe(output, args[0], mask)
        if self.gate.active:
            measured = self.measure(module, args, output)
            if measured is not None:
                output.register_hook(partial(self.backward, module, measured))
        return None

    def replay(self, grad: Tensor, x: Tensor, mask: Tensor | None) -> None:
        """Forward and backward hook in one, in the backward pass of a compiled graph."""
        module = self._module()
        if module is None or not self.gate.takes_gradients:
            return
        measured = self.measure(module, (x,), grad, mask)
        if measured is not None:
            self.backward(module, measured, grad)

    @property
    def stride(self) -> int:
        """Every how-many-th token is measured: the same in every micro-batch and on every rank."""
        if self.gate.stride is not None:
            return self.gate.stride
        longest = max((self.shapes[side][-1] for side in self.dense), default=0)
        return 1 if self.expected is None or not longest else automatic_stride(self.expected, longest)

    def choice(self, module: nn.Module, args: tuple, output: Tensor, tokens: int) -> Choice:
        """Which of so many tokens are measured."""
        length = self.kind.sequence(module, args, output) or 1
        if length == 1 or tokens % length:
            return Choice()
        stride = min(self.stride, length)
        return Choice(stride, self.gate.turn % stride, length)

    @torch.no_grad()
    def measure(self, module: nn.Module, args: tuple, output: Tensor, mask: Tensor | None = None) -> Measured | None:
        """What can be taken in the forward pass; None where this call cannot be measured."""
        with full_precision(output):
            return self._measure(module, args, output, mask)

    def _measure(self, module: nn.Module, args: tuple, output: Tensor, mask: Tensor | None) -> Measured | None:
        inputs = self.kind.inputs(module, args, output)
        if inputs is None:
            return None
        shape = self.kind.token_shape(module, args, output)
        choice = self.choice(module, args, output, count(inputs))
        mask = self.gate.padding.mask(self.mask_name, shape, args[0]) if mask is None else mask
        weights = self._weights(module, mask, output, inputs)
        if output.dtype is torch.bfloat16 and isinstance(inputs, Tensor) and "input" in self.dense:
            inputs = inputs.to(torch.bfloat16)  # under autocast the layer's own product rounds them too
        return Measured(self._input_moment(module, args[0], inputs, weights, choice), weights, choice)

    def _side(self, side: str, tokens: Tokens, weights: Tensor, choice: Choice) -> Tensor:
        """The moment of one side, over the tokens that were chosen for it.

        Diagonals cost little, and take all tokens unless the user wants otherwise. Ids are always counted: a word that
        a choice has missed would pass for one that never occurs.
        """
        dense = side in self.dense
        if isinstance(tokens, OneHot) or not (dense or self.gate.stride is not None):
            return self.moment(tokens, weights, dense)
        # Each one stands for the tokens that were skipped: another use of the weight may skip none.
        return self.moment(choice.of(tokens), choice.of_flat(weights) * choice.stride, dense)

    @torch.no_grad()
    def backward(self, module: nn.Module, measured: Measured, grad_output: Tensor) -> None:
        """The hook on the output: δ has arrived."""
        if not self.gate.takes_gradients:
            return
        delta = self.kind.outputs(module, grad_output)
        weights, estimated = measured.weights, self.gate.weights_of(count(delta))
        if estimated is not None:
            weights = weights * estimated.to(weights).square()
        with full_precision(grad_output):
            outputs = self._side("output", delta, weights, measured.choice)
        self.commit(Sums(measured.inputs, outputs, measured.weights.sum()))

    def commit(self, new: Sums) -> None:
        """Adds a call's sums, without the loss scale in δ, unless they are not finite."""
        if self.gate.inverse_scale is not None and not self.gate.in_own_pass:
            new.output = new.output * self.gate.inverse_scale() ** 2
        finite = torch.isfinite(new.input.sum() + new.output.sum())
        for name, value in vars(new).items():
            value = torch.where(finite, value, torch.zeros_like(value))
            setattr(new, name, value if self.sums is None else getattr(self.sums, name) + value)
        self.sums = new

    def _input_moment(self, module: nn.Module, x: Tensor, inputs: Tokens, weights: Tensor, choice: Choice) -> Tensor:
        if "input" not in self.dense:
            return self._side("input", inputs, weights, choice)
        dtype = getattr(inputs, "dtype", None)
        key = (self.kind.name, self.kind.input_key(module), self.mask_name, self.gate.padding.call, choice, dtype)
        last = self.gate.last_input
        if last is not None and last.is_of(x, key):
            return last.moment
        moment = self._side("input", inputs, weights, choice)
        self.gate.last_input = LastInput(weakref.ref(x), version_of(x), key, moment)
        return moment

    def _weights(self, module: nn.Module, mask: Tensor | None, output: Tensor, inputs: Tokens) -> Tensor:
        dtype = accumulation_dtype(output.dtype)
        weights = (
            output.new_ones(count(inputs), dtype=dtype) if mask is None else mask.to(output.device, dtype).reshape(-1)
        )
        if isinstance(inputs, OneHot) and getattr(module, "padding_idx", None) is not None:
            weights = weights * (inputs.ids != module.padding_idx)  # these rows get no gradient
        return weights

    def __deepcopy__(self, memo: dict) -> Tap:
        return _retired_tap(type(self))

    def __reduce__(self) -> tuple:
        return _retired_tap, (type(self),)


def full_precision(x: Tensor) -> torch.autocast:
    """No autocast: hooks run inside the user's, where products of float32 would be rounded, and squares overflow."""
    return torch.autocast(x.device.type, enabled=False)


def _retired_tap(cls: type[Tap]) -> Tap:
    tap = cls.__new__(cls)
    tap.retired = True
    return tap
