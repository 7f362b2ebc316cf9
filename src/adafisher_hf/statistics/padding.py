"""Which tokens are padding: the attention mask of the running forward pass, and whose it is.

Encoder-decoder models have two: modules of the encoder, and the keys and values of cross-attention (they read the
encoder's states), go by ``attention_mask``; all others by ``decoder_attention_mask`` or, where none is given (the
Trainer's collator makes none), by the labels. Only 2-D masks count.
"""

from __future__ import annotations

import inspect
import re
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MASKS = ("attention_mask", "decoder_attention_mask")
_IGNORED = -100  # what transformers' losses leave out
_CROSS_KEY_VALUE = re.compile(
    r"(EncDecAttention|encoder_attn|cross_?attn|cross_?attention).*\b(k|v|key|value|[kv]_proj)$", re.I
)


class Padding:
    """Keeps the masks of the last forward pass (activation checkpointing asks for them again in the backward pass)."""

    def __init__(self) -> None:
        self._masks: dict[str, Tensor | None] = dict.fromkeys(MASKS)
        self._encoder_decoder, self._encoder = False, "encoder."

    def attach(self, model: nn.Module) -> Any:
        """Starts to watch a model, until ``remove()`` is called on what is returned."""
        self._encoder_decoder = _is_encoder_decoder(model)
        self._encoder = _encoder_prefix(model)
        parameters = list(inspect.signature(model.forward).parameters)
        positions = {parameters.index(mask): mask for mask in MASKS if mask in parameters}
        remember = partial(_remember, self._masks, positions, self._encoder_decoder)
        return model.register_forward_pre_hook(remember, with_kwargs=True)

    def mask_name(self, module_name: str) -> str:
        """Which mask the tokens of this module go by."""
        if not self._encoder_decoder or module_name.startswith(self._encoder):
            return "attention_mask"
        return "attention_mask" if _CROSS_KEY_VALUE.search(module_name) else "decoder_attention_mask"

    def mask(self, mask_name: str, tokens: torch.Size | None) -> Tensor | None:
        """The 0/1 mask where its shape is that of the tokens; None: every token counts."""
        mask = self._masks[mask_name]
        return mask if mask is not None and mask.shape == tokens else None

    def flat_mask(self, mask_name: str, count: int) -> Tensor | None:
        """The same in one dimension, for layers that see ``count`` tokens without their batches."""
        mask = self._masks[mask_name]
        return mask.reshape(-1) if mask is not None and mask.numel() == count else None


def _remember(
    masks: dict,
    positions: dict[int, str],
    encoder_decoder: bool,
    module: nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
) -> None:
    given = {name: args[i] for i, name in positions.items() if i < len(args)} | kwargs
    if encoder_decoder and given.get("decoder_attention_mask") is None:
        given["decoder_attention_mask"] = _up_to_the_last_label(given.get("labels"))
    for name in masks:
        mask = given.get(name)
        masks[name] = mask if isinstance(mask, Tensor) and mask.dim() == 2 and _hides_something(mask) else None


def _up_to_the_last_label(labels: Any) -> Tensor | None:
    """A decoder's tokens after the last one with a label are padding: no gradient reaches them, for it is causal."""
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        return None
    return (labels != _IGNORED).int().flip(1).cummax(1).values.flip(1)


def _hides_something(mask: Tensor) -> bool:
    # A look at the values is free on the CPU only; elsewhere it would wait for the device.
    if torch.compiler.is_compiling() or mask.device.type != "cpu":
        return True
    return not bool(mask.all())


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _encoder_prefix(model: Any) -> str:
    encoder = model.get_encoder() if _is_encoder_decoder(model) and hasattr(model, "get_encoder") else None
    name = next((name for name, module in model.named_modules() if module is encoder), "encoder")
    return f"{name}."
