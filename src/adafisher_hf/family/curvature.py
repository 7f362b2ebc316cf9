"""The curvature of a loss along a direction, by one forward-mode product: no matrix, no graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from .passes import ForwardPass, NoBackward, call

logger = logging.getLogger(__name__)

# Convex in their first argument, so that their second derivative there makes the Gauss-Newton matrix. A loss of log
# probabilities is linear in them: cross entropy has the same value there, and the curvature of the logits.
LOSSES: dict[Callable, Callable] = {
    F.cross_entropy: F.cross_entropy,
    F.nll_loss: F.cross_entropy,
    F.mse_loss: F.mse_loss,
    F.huber_loss: F.huber_loss,
    F.smooth_l1_loss: F.smooth_l1_loss,
    F.binary_cross_entropy_with_logits: F.binary_cross_entropy_with_logits,
}


class Along(NamedTuple):
    """A loss along a direction d, scalars.

    Attributes:
        slope: gᵀd.
        curvature: dᵀ(Jᵀ H J)d, with J the derivative of what goes into the loss functions, H their own Hessian.
    """

    slope: Tensor
    curvature: Tensor


def along(model: nn.Module, passes: Sequence[ForwardPass], direction: Mapping[str, Tensor]) -> Along:
    """Slope and Gauss-Newton curvature of a loss, by a forward-mode product.

    Args:
        model: whose weights stay as they are.
        passes: the loss is the sum of theirs, each times its scale.
        direction: by the name of a parameter, of its shape.

    Raises:
        ValueError: an operator without a forward-mode derivative, or a loss function that is none of ``LOSSES``.
    """
    found = [_along_one(model, one, direction) for one in passes]
    scales = [one.scale for one in passes]
    slope = sum((slope * scale for (slope, _), scale in zip(found, scales, strict=True)), torch.zeros(()))
    curvature = sum((curvature * scale for (_, curvature), scale in zip(found, scales, strict=True)), torch.zeros(()))
    return Along(slope, curvature)


def _along_one(model: nn.Module, one: ForwardPass, direction: Mapping[str, Tensor]) -> Along:
    # Without gradients of the weights, and with gradients at all: what follows the loss functions is differentiated.
    plain = {name: parameter.detach() for name, parameter in model.named_parameters()}
    seen = Losses()
    with torch.enable_grad(), forward_ad.dual_level(), one.randomness.again(), _understood(), seen:
        duals = {name: forward_ad.make_dual(plain[name], d.to(plain[name].dtype)) for name, d in direction.items()}
        loss, slope = forward_ad.unpack_dual(call(model, one.run, {**plain, **duals}))
    if not seen.losses:
        names = ", ".join(function.__name__ for function in LOSSES)
        raise ValueError(f"AdamQLR knows the curvature of no function that this loss is made of: it knows {names}")
    curvature = seen.curvature(loss)
    return Along(torch.zeros_like(curvature) if slope is None else slope.detach(), curvature)


class _Seen(NamedTuple):
    """A call of a loss function: what it computes from its first argument z, z and its derivative, the loss."""

    function: Callable[[Tensor], Tensor]
    z: Tensor
    tangent: Tensor
    loss: Tensor


class Losses(NoBackward):
    """Within it the loss functions are seen, and are where a graph begins: it has what follows them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[_Seen] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in LOSSES:
            return super().__torch_function__(func, types, args, kwargs)
        kwargs = dict(kwargs or {})
        first, rest = (args[0], args[1:]) if args else (kwargs.pop("input"), ())
        result, slope = forward_ad.unpack_dual(func(first, *rest, **kwargs))
        z, tangent = forward_ad.unpack_dual(first)
        if tangent is None:
            return result
        start = result.detach().requires_grad_()
        function = partial(_of_first, LOSSES[func], rest, kwargs)
        self.losses.append(_Seen(function, z.detach(), tangent.detach(), start))
        return forward_ad.make_dual(start, slope)

    def curvature(self, total: Tensor) -> Tensor:
        """Of a loss that was made of what was seen."""
        starts = [seen.loss for seen in self.losses]
        weights = torch.autograd.grad(total, starts, allow_unused=True, materialize_grads=True)
        curved = [_second_derivative(*seen[:3]) for seen in self.losses]
        found = [(weight * value).sum() for weight, value in zip(weights, curved, strict=True)]
        return torch.stack([value.to(found[0].dtype) for value in found]).sum().clamp(min=0)


def _of_first(function: Callable, rest: tuple, kwargs: dict[str, Any], first: Tensor) -> Tensor:
    return function(first, *rest, **kwargs)


def _second_derivative(function: Callable[[Tensor], Tensor], z: Tensor, tangent: Tensor) -> Tensor:
    """jᵀ H j of each loss in what the function returns."""
    wide = torch.promote_types(z.dtype, torch.float32)
    z, tangent = z.to(wide), tangent.to(wide)
    zero, one = z.new_zeros(()), z.new_ones(())

    def first(t: Tensor) -> Tensor:
        return jvp(lambda s: function(z + s * tangent), (t,), (one,))[1]

    return jvp(first, (zero,), (one,))[1]


@contextmanager
def _understood() -> Iterator[None]:
    """Within it fused attention is not: it has no forward-mode derivative. What has none all the same is named."""
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    except NotImplementedError as error:
        if "forward AD" not in str(error):
            raise
        operator = str(error).partition("forward AD with ")[2].partition(" ")[0]
        raise ValueError(
            f"AdamQLR needs forward-mode derivatives, and {operator} has none: load the model with "
            "attn_implementation='eager' or 'sdpa', and experts_implementation='eager'"
        ) from None
