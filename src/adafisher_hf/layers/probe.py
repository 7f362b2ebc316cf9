"""What a norm computes, found by trying it once: a class may be called LayerNorm and keep the mean, or subtract it.

A twin of the module, on the CPU and with parameters of its own, normalises a few fixed numbers with all weights 1 and
with all weights 0. The difference is x̂, whether the weight is applied as w or as 1 + w, and whatever the bias. Nothing
of the module itself is touched or waited for, so that it may be sharded, quantised, or on the meta device.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compat import parameters_of, twin_of


class Form(NamedTuple):
    """How a norm makes x̂.

    Attributes:
        normalise: of x, shape (..., features), and ε.
        axis: where the features stand in the module's input, 1 or -1.
    """

    normalise: Callable[[Tensor, float], Tensor]
    axis: int


def standardise(x: Tensor, epsilon: float) -> Tensor:
    """Without its mean, by its standard deviation."""
    return F.layer_norm(x, x.shape[-1:], eps=epsilon)


def scale_to_rms(x: Tensor, epsilon: float) -> Tensor:
    """By its root mean square. Zeros stay zeros even where ε is 0."""
    mean_square = x.square().mean(-1, keepdim=True) + epsilon
    return x * torch.rsqrt(mean_square.clamp(min=torch.finfo(x.dtype).tiny))


_tried: weakref.WeakKeyDictionary[nn.Module, Form | None] = weakref.WeakKeyDictionary()


def form_of(module: nn.Module) -> Form | None:
    """How a norm with a 1-D weight makes x̂; None: in a way that is not known."""
    if module not in _tried:
        try:
            _tried[module] = _try(module)
        except RuntimeError:  # in a FakeTensorMode there are no values to be compared
            return form_by_name(module)
    return _tried[module]


def form_by_name(module: Any) -> Form:
    """What its class and its attributes promise."""
    # T5 calls its RMSNorm a LayerNorm; what gives a mean-subtracting norm away is its bias or its class.
    rms = (
        "RMS" in type(module).__name__
        or type(module).__name__ in ("T5LayerNorm", "LongT5LayerNorm")
        or (getattr(module, "bias", None) is None and hasattr(module, "variance_epsilon"))
    )
    first = getattr(module, "data_format", "") == "channels_first"
    return Form(scale_to_rms if rms else standardise, 1 if first else -1)


@torch.no_grad()
def _try(module: nn.Module) -> Form | None:
    if next(module.children(), None) is not None:
        return form_by_name(module)  # they are not a twin's to run
    ran = False
    for axis, places in ((-1, (5,)), (1, (5,)), (1, (5, 3))):
        x = _numbers(module.weight.numel(), places)  # type: ignore[operator]
        found = _normalised(module, x if axis == -1 else x.movedim(-1, 1), axis)
        if found is None:
            continue
        ran = True
        for normalise in (scale_to_rms, standardise):
            # ε is small against these numbers, and may be called anything.
            if torch.allclose(found, normalise(x, 0.0), rtol=1e-2, atol=1e-2):
                return Form(normalise, axis)
    # Kernels for a GPU do not run here.
    return None if ran else form_by_name(module)


def _normalised(module: nn.Module, x: Tensor, axis: int) -> Tensor | None:
    """x̂ as the module makes it, features last; None where it does not take such an x."""
    try:
        with torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
            outputs = [_with_weights(module, weight).forward(x.clone()) for weight in (1.0, 0.0)]
    except Exception:  # modules of others: whatever stops them, they cannot be tried
        return None
    if not all(isinstance(output, Tensor) and output.shape == x.shape for output in outputs):
        return None
    return (outputs[0] - outputs[1]).float().movedim(axis, -1)


def _with_weights(module: nn.Module, weight: float) -> Any:
    parameters: dict[str, nn.Parameter | None] = {}
    for name, parameter in parameters_of(module).items():
        value = 0.0 if name == "bias" else weight
        new = None if parameter is None else torch.full(parameter.shape, value, dtype=torch.float32, device="cpu")
        parameters[name] = None if new is None else nn.Parameter(new)
    buffers = {name: buffer.to("cpu", copy=True) for name, buffer in module.named_buffers(recurse=False)}
    return twin_of(module, parameters, buffers)


def _numbers(features: int, places: tuple[int, ...]) -> Tensor:
    """Fixed ones with a mean, (1, *places, features)."""
    count = torch.Size(places).numel() * features
    numbers = torch.arange(count, dtype=torch.float32, device="cpu") * 1.7
    return 3 * numbers.sin().view(1, *places, features) + 2
