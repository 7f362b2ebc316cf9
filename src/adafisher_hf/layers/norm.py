"""Normalisation layers: h is the normalised input x̂, and weight and bias act on it feature by feature."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import LayerKind, Layout, accumulation_dtype, as_tokens, bias_layout
from .probe import form_by_name, form_of


class NormKind(LayerKind):
    """What LayerNorm, RMSNorm and BatchNorm share: F = E[x̂²] ∘ E[δ²] for the weight, E[δ²] for the bias."""

    def layout(self, module: Any, attribute: str) -> Layout | None:
        parameter = getattr(module, attribute)
        if attribute == "bias":
            return bias_layout(parameter)
        return Layout((1, parameter.numel(), 1), elementwise=True) if attribute == "weight" else None


class LayerNormKind(NormKind):
    """nn.LayerNorm and subclasses that compute the same."""

    name = "norm"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, nn.LayerNorm) and type(module).forward is nn.LayerNorm.forward

    def token_shape(self, module: Any, args: tuple, output: Tensor) -> torch.Size | None:
        return output.shape[: output.dim() - len(module.normalized_shape)]

    def inputs(self, module: Any, args: tuple, output: Tensor) -> Tensor | None:
        x = args[0].to(accumulation_dtype(args[0].dtype))
        normalised = F.layer_norm(x, module.normalized_shape, eps=module.eps)
        return normalised.reshape(1, -1, module.weight.numel())

    def outputs(self, module: Any, grad_output: Tensor) -> Tensor:
        return grad_output.reshape(1, -1, module.weight.numel())


class RMSNormKind(NormKind):
    """Every other module whose class name ends in RMSNorm or LayerNorm, with a 1-D weight.

    There are more than two hundred such classes. What they do to their input is tried, once a module (``probe``): some
    subtract the mean, some do not, and in some the features stand first.
    """

    name = "norm"

    def matches(self, module: nn.Module) -> bool:
        weight = getattr(module, "weight", None)
        named = isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
        return named and isinstance(weight, Tensor) and weight.dim() == 1

    def token_shape(self, module: Any, args: tuple, output: Tensor) -> torch.Size | None:
        return _features_last(module, output).shape[:-1]

    def inputs(self, module: Any, args: tuple, output: Tensor) -> Tensor | None:
        tensors = [a for a in args if isinstance(a, Tensor)]
        if len(tensors) != 1 or tensors[0].shape != output.shape:
            return None  # a gated norm: x̂ is not a function of one input
        form, x = form_of(module), _features_last(module, tensors[0])
        if form is None or x.shape[-1] != module.weight.numel():
            return None
        x = x.to(accumulation_dtype(x.dtype))
        return as_tokens(form.normalise(x, _epsilon(module, x.dtype)))

    def outputs(self, module: Any, grad_output: Tensor) -> Tensor:
        return as_tokens(_features_last(module, grad_output))


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


def _epsilon(module: Any, dtype: torch.dtype) -> float:
    for name in ("eps", "variance_epsilon", "epsilon"):
        if isinstance(getattr(module, name, None), int | float):
            return getattr(module, name)
    # As nn.RMSNorm does without one.
    return torch.finfo(dtype).eps if getattr(module, "eps", 0.0) is None else 0.0


def _features_last(module: Any, x: Tensor) -> Tensor:
    # Nothing is tried while a graph is made; there ConvNeXt's norms, whose channels stand first, say so themselves.
    form = form_by_name(module) if torch.compiler.is_compiling() else form_of(module)
    return x if form is None else x.movedim(form.axis, -1)
