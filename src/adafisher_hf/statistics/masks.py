"""What a mask says about the tokens of a layer: read from the arguments of a model's call, laid over what a layer sees.

A mask is bool here, (batch, tokens), False for padding; None where nothing is hidden.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

ENCODER, DECODER = "attention_mask", "decoder_attention_mask"
Masks = dict[str, Tensor | None]
Known = list[tuple[Tensor, Tensor | None]]  # what was given, and the mask that was read in it
_IGNORED = -100  # what transformers' losses leave out


class MaskReader:
    """Finds the masks in the arguments of one model's calls.

    Args:
        model: any module; an argument that its signature does not name is found when it comes as a keyword.
        side: whose tokens its own ``attention_mask`` is about, ``ENCODER`` or ``DECODER``.
        makes_decoder_mask: an encoder-decoder model, which decides about its decoder where no mask is given.
    """

    def __init__(self, model: nn.Module, side: str = ENCODER, makes_decoder_mask: bool = False):
        self._parameters = list(inspect.signature(model.forward).parameters)
        self._makes_decoder_mask = makes_decoder_mask
        self._pad = getattr(getattr(model, "config", None), "pad_token_id", None)
        both = makes_decoder_mask or DECODER in self._parameters or side == ENCODER
        # A decoder alone calls the mask of its own tokens attention_mask.
        self._targets = {ENCODER: ENCODER, DECODER: DECODER} if both else {ENCODER: side, "encoder_" + ENCODER: ENCODER}

    def read(self, args: tuple, kwargs: Mapping[str, Any], outer: Masks, known: Known) -> Masks:
        """The masks of a call.

        Args:
            args, kwargs: of the call.
            outer: the masks of the model's call that this one happens in; empty where there is none.
            known: what has been read in this call and those around it: models hand their masks on. New ones are added.
        """
        given = dict(zip(self._parameters, args, strict=False)) | dict(kwargs)
        masks: Masks = dict.fromkeys((ENCODER, DECODER))
        for argument, target in self._targets.items():
            masks[target] = _read(given.get(argument), outer.get(target), known)
        if given.get(self._decoder_argument()) is None:
            masks[DECODER] = self._without_a_mask(given) if self._makes_decoder_mask else outer.get(DECODER)
        return masks

    def _decoder_argument(self) -> str:
        return next(argument for argument, target in self._targets.items() if target == DECODER)

    def _without_a_mask(self, given: Mapping[str, Any]) -> Tensor | None:
        mask = up_to_the_last_label(given.get("labels"))
        if mask is None:  # label smoothing keeps the labels from the model
            mask = up_to_the_last_id(given.get("decoder_input_ids"), self._pad)
        return None if mask is None or not _hides_something(mask) else mask


def up_to_the_last_label(labels: Any) -> Tensor | None:
    """A decoder's tokens after the last one with a label are padding: no gradient reaches them, for it is causal."""
    if not isinstance(labels, Tensor) or labels.dim() != 2:
        return None
    return _up_to_the_last(labels != _IGNORED)


def up_to_the_last_id(ids: Any, pad: int | None) -> Tensor | None:
    """The same without labels: up to the last token that is not the padding token, and at least the first one.

    These are one more than with labels in all but the longest sequences: the last label is an input that predicts
    nothing.
    """
    if not isinstance(ids, Tensor) or ids.dim() != 2 or pad is None:
        return None
    first = torch.arange(ids.shape[1], device=ids.device) == 0  # T5 starts with its padding token
    return _up_to_the_last((ids != pad) | first)


def spread(mask: Tensor, tokens: torch.Size, x: Tensor | None = None) -> Tensor | None:
    """Lays a mask over the leading dimensions of what a layer sees; None where they are not the mask's.

    They may be (batch, tokens), these two in one (OPT, experts), either of these with heads after it (Qwen3's q_norm),
    or (batch, heads, tokens) (Gemma3's).

    Args:
        mask: (batch, tokens).
        tokens: the leading dimensions.
        x: the layer's input. With as many heads as tokens its strides say which are which: heads are made by a view of
            the features, so that the step from token to token is the longer one.
    """
    for leading in (mask, mask.reshape(-1)):
        dims = leading.dim()
        if tokens[:dims] == leading.shape and not (dims == 2 and _heads_stand_first(tokens, x)):
            return leading.reshape(*leading.shape, *[1] * (len(tokens) - dims)).expand(tokens)
    if len(tokens) == 3 and (tokens[0], tokens[2]) == tuple(mask.shape):
        return mask.unsqueeze(1).expand(tokens)
    return None


def _heads_stand_first(tokens: torch.Size, x: Tensor | None) -> bool:
    return len(tokens) == 3 and tokens[1] == tokens[2] and x is not None and x.dim() > 3 and x.stride(1) < x.stride(2)


def _read(given: Any, outer: Tensor | None, known: Known) -> Tensor | None:
    if given is None:
        return None
    if not isinstance(given, Tensor) or given.dim() != 2:
        return outer  # the outer model has made something else of the mask that it was given
    for seen, mask in known:
        if seen is given:
            return mask
    real = _real_tokens(given)
    known.append((given, real if _hides_something(real) else None))
    return known[-1][1]


def _real_tokens(mask: Tensor) -> Tensor:
    """Nonzero is a token: packed sequences are numbered. What is added to scores hides nothing that can be told."""
    real = mask != 0
    if not mask.is_floating_point() or mask.numel() == 0:
        return real
    additive = (mask.amin() < 0) | (mask.amax() <= 0)  # decided where the mask is: the host does not wait
    return real | additive


def _up_to_the_last(real: Tensor) -> Tensor:
    return real.int().flip(1).cummax(1).values.flip(1).bool()


def _hides_something(mask: Tensor) -> bool:
    # A look at the values is free on the CPU only; elsewhere it would wait for the device.
    if torch.compiler.is_compiling() or mask.device.type != "cpu":
        return True
    return not bool(mask.all())
