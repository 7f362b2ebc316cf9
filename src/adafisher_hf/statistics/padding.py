"""Which tokens are padding: the mask of the running forward pass, and whose it is.

Every model of transformers inside the optimizer's is watched, and the optimizer's own: a mask counts while the call
that it was given to runs, for the innermost model that runs. So it is found inside a wrapper (DDP, PEFT, a module of
the user's), a vision tower does not go by the mask of the text, and no mask outlives its call.

Encoder-decoder models have two masks: modules of the encoder, and the keys and values of cross-attention (they read the
encoder's states), go by ``attention_mask``; all others by ``decoder_attention_mask`` or, where none is given (the
Trainer's collator makes none), by the labels. Only 2-D masks count.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..compat import in_function_transform, is_transformers_model, next_node_number, running_node_number
from .hooks import Hook
from .masks import DECODER, ENCODER, Known, MaskReader, Masks, spread

_CROSS_KEY_VALUE = re.compile(
    r"(EncDecAttention|encoder_attn|cross_?attn|cross_?attention).*\b(k|v|key|value|[kv]_proj)(\.|$)", re.I
)  # LoRA puts its layers into these
# Tables of distances: what they see may have the shape of a batch, and is none (T5, DeBERTa).
_DISTANCES = re.compile(r"(relative_attention_bias|pos_(key|query)_proj|pos_proj|pos_q_proj)$")
_REMEMBERED = 256  # calls whose backward pass may recompute them; a mask is one byte a token


@dataclass
class _Call:
    """A forward pass of a watched model: the masks, and which autograd nodes it has made (numbers first to last)."""

    name: str
    number: int
    masks: Masks
    known: Known
    first: int
    last: int = 0


class Padding:
    """The masks of the model calls that run now, and of those that a backward pass may recompute."""

    def __init__(self) -> None:
        self._running: list[_Call] = []
        self._past: deque[_Call] = deque(maxlen=_REMEMBERED)
        self._sides: list[tuple[str, str]] = []  # prefixes of an encoder-decoder model and of its encoder
        self._calls = 0

    def attach(self, model: nn.Module) -> Any:
        """Starts to watch a model, until ``remove()`` is called on what is returned."""
        watched = {name: m for name, m in model.named_modules() if m is model or is_transformers_model(m)}
        for name, module in watched.items():
            if _is_encoder_decoder(module) and self._side_of(name) is None:
                self._sides.append((_prefix(name), _prefix(name) + _encoder_prefix(module)))
        handles = _Handles()
        for name, module in watched.items():
            side = self._side_of(name)
            makes = any(_prefix(name) == prefix for prefix, _ in self._sides)
            reader = MaskReader(module, side or ENCODER, makes_decoder_mask=makes)
            # Its end is registered first and so comes before any other hook on what the model returns.
            handles.append(module.register_forward_hook(Hook(self._end, name), always_call=True))
            handles.append(module.register_forward_pre_hook(Hook(self._begin, name, reader), with_kwargs=True))
        return handles

    def mask_name(self, module_name: str) -> str:
        """Which mask the tokens of this module go by; empty: by none."""
        if _DISTANCES.search(module_name):
            return ""
        return self._side_of(module_name) or ENCODER

    def mask(self, mask_name: str, tokens: torch.Size | None, x: Tensor | None = None) -> Tensor | None:
        """The mask as it lies over a layer's tokens; None: every token counts.

        Args:
            mask_name: from ``mask_name()``.
            tokens: the leading dimensions of what the layer sees; None: no mask is about them.
            x: the layer's input, see ``spread``.
        """
        mask = self._mask(mask_name)
        return None if mask is None or tokens is None else spread(mask, tokens, x)

    def flat_mask(self, mask_name: str, count: int) -> Tensor | None:
        """The same in one dimension, for layers that see ``count`` tokens without their batches."""
        mask = self._mask(mask_name)
        return mask.reshape(-1) if mask is not None and mask.numel() == count else None

    @property
    def call(self) -> int:
        """A number for what masks depend on now: equal inputs of two calls may have different masks."""
        call = self._call()
        return 0 if call is None else call.number

    def _mask(self, mask_name: str) -> Tensor | None:
        call = self._call()
        return None if call is None else call.masks.get(mask_name)

    def _call(self) -> _Call | None:
        if self._running:
            return self._running[-1]
        # Activation checkpointing runs layers again in the backward pass: the node that does it was made by their call.
        node = None if torch.compiler.is_compiling() or not self._past else running_node_number()
        if node is None:
            return None
        calls = [call for call in self._past if call.first <= node < call.last]
        return max(calls, key=lambda call: (call.first, -call.last), default=None)  # the innermost

    def _begin(self, name: str, reader: MaskReader, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling() and in_function_transform():
            return  # nothing is measured there, and no mask can be looked at
        self._stop(name)  # what an interrupted call has left behind
        outer = self._running[-1] if self._running else None
        known: Known = [] if outer is None else outer.known
        masks = reader.read(args, kwargs, {} if outer is None else outer.masks, known)
        self._running.append(_Call(name, self._next_number(), masks, known, next_node_number()))

    def _end(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        call = self._stop(name)
        if call is None:
            return
        call.last, call.known = next_node_number(), []
        outer = self._running[-1].masks if self._running else {}
        if call.last > call.first and any(mask is not outer.get(key) for key, mask in call.masks.items()):
            self._past.append(call)

    def _stop(self, name: str) -> _Call | None:
        """Takes the running call of this model off, and those inside it."""
        for i, call in enumerate(self._running):
            if call.name == name:
                del self._running[i:]
                return call
        return None

    def _next_number(self) -> int:
        if torch.compiler.is_compiling():
            return 0  # a graph would be compiled anew for every number
        self._calls += 1
        return self._calls

    def _side_of(self, module_name: str) -> str | None:
        """Whose tokens a module of an encoder-decoder model sees; None for other modules."""
        for model, encoder in self._sides:
            if f"{module_name}.".startswith(model):
                inside = f"{module_name}.".startswith(encoder) or _CROSS_KEY_VALUE.search(module_name)
                return ENCODER if inside else DECODER
        return None


class _Handles:
    """Of all hooks."""

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def append(self, handle: Any) -> None:
        self._handles.append(handle)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _prefix(name: str) -> str:
    return f"{name}." if name else ""


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _encoder_prefix(model: Any) -> str:
    encoder = model.get_encoder() if hasattr(model, "get_encoder") else None
    name = next((name for name, module in model.named_modules() if module is encoder), "encoder")
    return f"{name}."
