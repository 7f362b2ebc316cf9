"""Normalisation layers: h is the normalised input x̂, and weight and bias act on it feature by feature."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import LayerKind, Layout, accumulation_dtype, as_tokens, bias_layout


class NormKind(LayerKind):
    """What LayerNorm, RMSNorm and BatchNorm share: F = E[x̂²] ∘ E[δ²] for the weight, E[δ²] for the bias."""

    def layout(self, module: Any, attribute: str) -> Layout | None:
        parameter = getattr(module, attribute)
        if attribute == "bias":
            return bias_layout(parameter)
        return Layout((1, parameter.numel(), 1), elementwise=True) if attribute == "weight" else None


class LayerNormKind(NormKind):
    name = "norm"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.LayerNorm)

    def token_shape(self, module: Any, args: tuple, output: Tensor) -> torch.Size | None:
        return output.shape[: output.dim() - len(module.normalized_shape)]

    def inputs(self, module: Any, args: tuple, output: Tensor) -> Tensor | None:
        x = _features_last(module, args[0])
        normalised = F.layer_norm(x.to(accumulation_dtype(x.dtype)), module.normalized_shape, eps=module.eps)
        return normalised.reshape(1, -1, module.weight.numel())

    def outputs(self, module: Any, grad_output: Tensor) -> Tensor:
        return _features_last(module, grad_output).reshape(1, -1, module.weight.numel())


class RMSNormKind(NormKind):
    """Every module whose class name ends in RMSNorm (or T5's and ESM-like LayerNorms without a mean) with a 1-D weight.

    Recognised by behaviour, as there are close to two hundred such classes: a name, a 1-D weight as wide as the
    last dimension, one tensor in. Whether the weight is applied as w or as 1 + w does not change its gradient.
    """

    name = "norm"

    def matches(self, module: nn.Module) -> bool:
        weight = getattr(module, "weight", None)
        named = type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
        return named and isinstance(weight, Tensor) and weight.dim() == 1

    def inputs(self, module: Any, args: tuple, output: Tensor) -> Tensor | None:
        tensors = [a for a in args if isinstance(a, Tensor)]
        if len(tensors) != 1 or tensors[0].shape[-1] != module.weight.numel() or tensors[0].shape != output.shape:
            return None  # a gated norm: x̂ is not a function of one input
        x = tensors[0].to(accumulation_dtype(tensors[0].dtype))
        if not _is_rms(module):
            return as_tokens(F.layer_norm(x, x.shape[-1:], eps=_epsilon(module)))
        return as_tokens(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _epsilon(module)))


class BatchNormKind(NormKind):
    name = "batchnorm"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)

    def token_shape(self, module: Any, args: tuple, output: Tensor) -> torch.Size | None:
        return None

    def inputs(self, module: Any, args: tuple, output: Tensor) -> Tensor | None:
        x = args[0].to(accumulation_dtype(args[0].dtype))
        if module.training or module.running_mean is None:
            normalised = F.batch_norm(x, None, None, training=True, eps=module.eps)
        else:
            normalised = F.batch_norm(x, module.running_mean, module.running_var, eps=module.eps)
        return as_tokens(normalised.movedim(1, -1))

    def outputs(self, module: Any, grad_output: Tensor) -> Tensor:
        return as_tokens(grad_output.movedim(1, -1))


class GroupNormKind(NormKind):
    name = "norm"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.GroupNorm)

    def token_shape(self, module: Any, args: tuple, output: Tensor) -> torch.Size | None:
        return None

    def inputs(self, module: Any, args: tuple, output: Tensor) -> Tensor | None:
        normalised = F.group_norm(args[0].to(accumulation_dtype(args[0].dtype)), module.num_groups, eps=module.eps)
        return as_tokens(normalised.movedim(1, -1))

    def outputs(self, module: Any, grad_output: Tensor) -> Tensor:
        return as_tokens(grad_output.movedim(1, -1))


def _is_rms(module: Any) -> bool:
    # T5 calls its RMSNorm a LayerNorm; what gives a mean-subtracting norm away is its bias or its class.
    return (
        "RMS" in type(module).__name__
        or type(module).__name__ in ("T5LayerNorm", "LongT5LayerNorm")
        or (getattr(module, "bias", None) is None and hasattr(module, "variance_epsilon"))
    )


def _epsilon(module: Any) -> float:
    for name in ("eps", "variance_epsilon", "epsilon"):
        if isinstance(getattr(module, name, None), float):
            return getattr(module, name)
    return 0.0


def _features_last(module: Any, x: Tensor) -> Tensor:
    # ConvNeXt's LayerNorm subclass normalises over channels that stand first.
    return x.movedim(1, -1) if getattr(module, "data_format", "") == "channels_first" else x
