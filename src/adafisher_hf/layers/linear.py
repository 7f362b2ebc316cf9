"""Linear layers, and transformers' Conv1D, a Linear whose weight is stored transposed."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor, nn

from ..compat import is_conv1d
from .base import LayerKind, Layout, as_tokens, bias_layout, weight_layout


class LinearKind(LayerKind):
    name = "linear"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear)

    def layout(self, module: Any, attribute: str) -> Layout | None:
        parameter = getattr(module, attribute)
        if attribute == "bias":
            return bias_layout(parameter, inputs=module.weight.shape[1])
        matrix = attribute == "weight" and parameter.dim() == 2  # quantised weights are stored flat
        return weight_layout((1, *parameter.shape), module) if matrix else None

    def input_key(self, module: Any) -> Hashable:
        return self.name

    def inputs(self, module: Any, args: tuple, output: Tensor) -> Tensor | None:
        features = module.weight.shape[1]
        return as_tokens(args[0]) if args[0].shape[-1] == features else None


class Conv1DKind(LinearKind):
    name = "conv1d"

    def matches(self, module: nn.Module) -> bool:
        return is_conv1d(module)

    def layout(self, module: Any, attribute: str) -> Layout | None:
        parameter = getattr(module, attribute)
        if attribute == "bias":
            return bias_layout(parameter, inputs=module.weight.shape[0])
        return weight_layout((1, *parameter.shape), module, transposed=True) if attribute == "weight" else None

    def inputs(self, module: Any, args: tuple, output: Tensor) -> Tensor | None:
        return as_tokens(args[0])
