"""What h and δ are in the published code, for ``mode="reference"``: raw means instead of sums.

They are kept to the letter, oddities included (LayerNorm's two scalars, BatchNorm's division by (H·W)²), because this
mode exists to be compared with; see docs of the modes for what they do to a transformer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .base import LayerKind, Layout
from .conv import patches


class ReferenceKind(LayerKind):
    """Layers whose F̃ is outer(S, H) over the weight as a (d_out, …) matrix, the bias in the last column."""

    def layout(self, module: Any, attribute: str) -> Layout | None:
        parameter = getattr(module, attribute)
        inputs = self.augmented_from(module)
        if attribute == "bias":
            return Layout((1, parameter.numel(), 1), col="unit", bias_input=inputs)
        shape = (1, parameter.shape[0], parameter.numel() // parameter.shape[0])
        return Layout(shape, bias_input=inputs) if attribute == "weight" else None

    def augmented_from(self, module: Any) -> int:
        """How many entries H has before that of the bias; 0 where it has none."""
        return 0 if module.bias is None else module.weight[0].numel()

    def raw_input(self, module: Any, x: Tensor) -> Tensor:
        """H, with the entry of the bias appended where the published code has one."""
        raise NotImplementedError

    def raw_output(self, module: Any, grad: Tensor) -> Tensor:
        """S, shape (d_out,)."""
        raise NotImplementedError


class ReferenceLinear(ReferenceKind):
    name = "linear"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear)

    def raw_input(self, module: Any, x: Tensor) -> Tensor:
        return _with_bias(module, x.reshape(-1, x.shape[-1]).square().mean(0), 1.0)

    def raw_output(self, module: Any, grad: Tensor) -> Tensor:
        return grad.reshape(-1, grad.shape[-1]).square().mean(0)


class ReferenceConv2d(ReferenceKind):
    name = "conv"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Conv2d) and module.groups == 1

    def raw_input(self, module: Any, x: Tensor) -> Tensor:
        rows = patches(module, x)
        rows = rows.transpose(0, 1).reshape(rows.shape[1], -1)
        count = rows.shape[0] * rows.shape[1]
        return _with_bias(module, rows.square().sum(0) / count, rows.shape[0] / count)

    def raw_output(self, module: Any, grad: Tensor) -> Tensor:
        return grad.square().mean((0, 2, 3))


class ReferenceLayerNorm(ReferenceKind):
    name = "norm"

    def augmented_from(self, module: Any) -> int:
        return 1

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.LayerNorm)

    def raw_input(self, module: Any, x: Tensor) -> Tensor:
        others = [dim for dim in range(x.dim()) if dim != 1]
        sums = x.sum(others) / math.prod(x.shape[2:]) ** 2
        return torch.stack([sums.square().sum(), sums.new_tensor(x.shape[1])]) / x.shape[0] ** 2

    def raw_output(self, module: Any, grad: Tensor) -> Tensor:
        return grad.reshape(-1, grad.shape[-1]).sum(0).square() / grad.shape[0]


class ReferenceBatchNorm2d(ReferenceKind):
    name = "batchnorm"

    def augmented_from(self, module: Any) -> int:
        return 1

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.BatchNorm2d)

    def raw_input(self, module: Any, x: Tensor) -> Tensor:
        sums = x.sum((0, 2, 3)) / math.prod(x.shape[2:]) ** 2
        return torch.stack([sums.square().sum(), sums.new_tensor(x.shape[1])]) / x.shape[0] ** 2

    def raw_output(self, module: Any, grad: Tensor) -> Tensor:
        return grad.sum((0, 2, 3)).square() / grad.shape[0]


REFERENCE_KINDS = (ReferenceLinear(), ReferenceConv2d(), ReferenceBatchNorm2d(), ReferenceLayerNorm())


def _with_bias(module: Any, raw: Tensor, value: float) -> Tensor:
    return raw if module.bias is None else torch.cat([raw, raw.new_tensor([value])])
