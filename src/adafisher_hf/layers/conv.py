"""Convolutions: a "token" is one output position, h its input patch (per group)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compat import conv_padding
from .base import LayerKind, Layout, bias_layout, weight_layout


class ConvKind(LayerKind):
    name = "conv"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Conv1d | nn.Conv2d)

    def layout(self, module: Any, attribute: str) -> Layout | None:
        parameter, groups = getattr(module, attribute), module.groups
        if attribute == "bias":
            return bias_layout(parameter, groups, inputs=module.weight[0].numel())
        if attribute != "weight":
            return None
        channels = parameter.shape[0] // groups
        return weight_layout((groups, channels, parameter[0].numel()), module)

    def token_shape(self, module: Any, args: tuple, output: Tensor) -> torch.Size | None:
        return None

    def sequence(self, module: Any, args: tuple, output: Tensor) -> int | None:
        return output.shape[-(module.weight.dim() - 2) :].numel()  # the positions of an example

    def input_key(self, module: Any) -> Hashable:
        sizes = module.kernel_size, module.stride, module.padding, module.dilation
        return *sizes, module.padding_mode, module.groups

    def inputs(self, module: Any, args: tuple, output: Tensor) -> Tensor | None:
        return patches(module, args[0])

    def outputs(self, module: Any, grad_output: Tensor) -> Tensor:
        dims = module.weight.dim() - 2
        grad = grad_output if grad_output.dim() == dims + 2 else grad_output.unsqueeze(0)
        batch, channels = grad.shape[:2]
        grad = grad.reshape(batch, module.groups, channels // module.groups, -1)
        return grad.permute(1, 0, 3, 2).reshape(module.groups, -1, channels // module.groups)


def patches(module: Any, x: Tensor) -> Tensor:
    """The input patch of every output position: (groups, batch · positions, channels / groups · kernel)."""
    dims = module.weight.dim() - 2
    x = x if x.dim() == dims + 2 else x.unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, conv_padding(module), mode=mode)
    kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
    if dims == 1:
        x, kernel, dilation, stride = x.unsqueeze(2), (1, *kernel), (1, *dilation), (1, *stride)
    unfolded = F.unfold(x, kernel, dilation=dilation, stride=stride)
    batch, features, positions = unfolded.shape
    unfolded = unfolded.reshape(batch, module.groups, features // module.groups, positions)
    return unfolded.permute(1, 0, 3, 2).reshape(module.groups, batch * positions, -1)
