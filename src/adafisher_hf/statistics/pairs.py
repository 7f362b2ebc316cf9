"""Which parameters are the two factors of one adapter, W + s B A."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..compat import is_lora_layer

LARGEST = 4  # dimensions of a weight: those of three-dimensional convolutions lie otherwise


class AdapterPair(NamedTuple):
    """The factors of a low-rank adapter.

    Attributes:
        a: A, (r, n), n inputs; of a convolution (r, channels, kernel…).
        b: B, (m, r), m outputs; of a convolution (m, r, 1…).
    """

    a: Tensor
    b: Tensor


def find_pairs(model: nn.Module) -> list[AdapterPair]:
    """The pairs of peft's LoRA layers whose product is A applied before B, both trainable and in one place each.

    Not those of embeddings, whose factors no module multiplies with, of convolutions in groups, and of A or B that
    several layers share.
    """
    found = [pair for layer in model.modules() if is_lora_layer(layer) for pair in _pairs_of(layer)]
    uses = Counter(id(factor) for pair in found for factor in pair)
    return [pair for pair in found if all(uses[id(factor)] == 1 and factor.requires_grad for factor in pair)]


def _pairs_of(layer: Any) -> Iterator[AdapterPair]:
    for name in layer.lora_A:
        if name in layer.lora_B:
            a, b = layer.lora_A[name], layer.lora_B[name]
            plain = all(getattr(module, "groups", 1) == 1 and hasattr(module, "weight") for module in (a, b))
            if plain and max(a.weight.dim(), b.weight.dim()) <= LARGEST and a.weight.shape[0] == b.weight.shape[1]:
                yield AdapterPair(a.weight, b.weight)
