"""What a weight is for: a table or a head, a matrix of a hidden layer, or neither. One answer for all arms.

Tables and heads are embeddings of any kind (of tokens, positions, relative distances), the head that
``get_output_embeddings`` names, and the layers outside of a transformers model's body. Hidden matrices are the weights
of all other linear and convolutional layers, as (outputs, inputs); a fused projection is several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Views = Callable[[Tensor], tuple[Tensor, ...]]
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, Conv1D)
FUSED = {"c_attn": 3}  # by name: how many matrices lie side by side in the outputs


def tables(model: nn.Module) -> set[int]:
    """The ``id`` of every weight of a table or a head."""
    found = {id(layer.weight) for layer in _heads(model) if hasattr(layer, "weight")}
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            found.add(id(module.weight))
        elif not isinstance(module, LAYERS):  # a table of positions may be a plain parameter
            found |= {id(param) for param in module.parameters(recurse=False) if _is_matrix(param)}
    return found


def hidden_matrices(model: nn.Module) -> dict[int, Views]:
    """By the ``id`` of every hidden weight: what takes its matrices out of a tensor of its shape, without a copy."""
    outer = tables(model)
    return {
        id(layer.weight): _views(name.rpartition(".")[2], layer)
        for name, layer in model.named_modules()
        if isinstance(layer, LAYERS) and id(layer.weight) not in outer
    }


def _views(name: str, layer: Any) -> Views:
    parts = FUSED.get(name, 1)
    if isinstance(layer, Conv1D):  # which stores (inputs, outputs)
        return lambda tensor: tensor.mT.chunk(parts)
    return lambda tensor: tensor.flatten(1).chunk(parts)


def _heads(model: Any) -> Iterator[nn.Module]:
    if callable(getattr(model, "get_output_embeddings", None)):
        head = model.get_output_embeddings()
        if head is not None:
            yield head
    body = getattr(model, "base_model", model)
    if body is not model:
        inside = {id(module) for module in body.modules()}
        yield from (layer for layer in model.modules() if isinstance(layer, LAYERS) and id(layer) not in inside)


def _is_matrix(parameter: Tensor) -> bool:
    return sum(length > 1 for length in parameter.shape) > 1
