"""Embeddings: h is the one-hot vector of the token, so its second moment is the token's frequency."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor, nn

from ..compat import looked_up_ids
from .base import LayerKind, Layout, OneHot, as_tokens


class EmbeddingKind(LayerKind):
    name = "embedding"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Embedding)

    def layout(self, module: Any, attribute: str) -> Layout | None:
        if attribute != "weight":
            return None
        return Layout((1, *module.weight.shape), row="input", col="output")

    def input_key(self, module: Any) -> Hashable:
        # A subclass that makes ids of its own from its input (OPT's positions) may make others than the next one.
        shared = module.num_embeddings, module.padding_idx
        return shared if _first_argument_is_ids(module) else id(module)

    def inputs(self, module: Any, args: tuple, output: Tensor) -> OneHot | None:
        ids = args[0] if _first_argument_is_ids(module) and args else _looked_up_ids(output)
        if ids is None or ids.shape != output.shape[:-1]:
            return None
        return OneHot(ids.reshape(-1), module.num_embeddings)

    def outputs(self, module: Any, grad_output: Tensor) -> Tensor:
        # A scaled embedding (Gemma, BART) multiplies after the look-up: the weight sees scale · δ.
        scale = getattr(module, "embed_scale", None)
        return as_tokens(grad_output) if scale is None else as_tokens(grad_output) * scale


def _first_argument_is_ids(module: nn.Module) -> bool:
    return type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")


def _looked_up_ids(output: Tensor) -> Tensor | None:
    """The indices a subclass looked up, from the autograd node: OPT's and BART's positions make their own.

    A compiled graph has no such nodes; there these embeddings use their gradients instead.
    """
    node = output.grad_fn
    for _ in range(4):
        if node is None:
            return None
        if node.name().startswith("EmbeddingBackward"):
            ids = looked_up_ids(node)
            return ids.expand(output.shape[:-1]) if ids.dim() == output.dim() - 1 else ids
        node = node.next_functions[0][0] if node.next_functions else None
    return None
