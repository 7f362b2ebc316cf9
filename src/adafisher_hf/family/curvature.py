"""The curvature of a loss along a direction, by one forward-mode product: no matrix, no graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..compat import eager_implementations, fused_implementations
from ..statistics.telling import warn
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


class ForwardProduct:
    """Forward-mode products through a model, whose weights, buffers and random numbers stay as they are.

    Fused attention has no forward-mode derivative and is taken apart. If another operator has none either, attention
    and experts of transformers' models are run eagerly, in the product alone.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._eagerly = False

    def along(self, passes: Sequence[ForwardPass], direction: Mapping[str, Tensor]) -> Along:
        """Slope and Gauss-Newton curvature of a loss.

        Args:
            passes: the loss is the sum of theirs, each times its scale.
            direction: by the name of a parameter, of its shape.

        Raises:
            ValueError: an operator without a forward-mode derivative, or a loss function that is none of ``LOSSES``.
        """
        try:
            found = [self._along_one(one, direction) for one in passes]
        except NotImplementedError as error:
            self._run_eagerly(error)
            return self.along(passes, direction)
        scaled = [(one.slope * each.scale, one.curvature * each.scale) for one, each in zip(found, passes, strict=True)]
        return Along(*(torch.stack(parts).sum() for parts in zip(*scaled, strict=True)))

    def _along_one(self, one: ForwardPass, direction: Mapping[str, Tensor]) -> Along:
        plain = {name: parameter.detach() for name, parameter in self._model.named_parameters()}
        kernels = eager_implementations(self._model) if self._eagerly else sdpa_kernel(SDPBackend.MATH)
        seen = Losses()
        # With gradients, of what follows the loss functions: the weights ask for none.
        with torch.enable_grad(), forward_ad.dual_level(), one.randomness.again(), kernels, seen:
            duals = {name: forward_ad.make_dual(plain[name], d.to(plain[name].dtype)) for name, d in direction.items()}
            loss, slope = forward_ad.unpack_dual(call(self._model, one.run, {**plain, **duals}))
        if slope is None or not seen.losses:
            names = ", ".join(function.__name__ for function in LOSSES)
            raise ValueError(f"AdamQLR knows the curvature of no function that this loss is made of: it knows {names}")
        return Along(slope.detach(), seen.curvature(loss))

    def _run_eagerly(self, error: NotImplementedError) -> None:
        """From now on, if that is another way.

        Raises:
            ValueError: it is not.
        """
        operator = str(error).partition("forward AD with ")[2].partition(" ")[0] or "an autograd function of the model"
        if self._eagerly or not fused_implementations(self._model):
            raise ValueError(f"AdamQLR needs forward-mode derivatives, and {operator} has none") from error
        self._eagerly = True
        message = "%s has no forward-mode derivative: AdamQLR runs attention and experts eagerly for its product"
        warn(logger, message, operator)


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
        return forward_ad.make_dual(start.clone(), slope)  # some models add to their loss in place

    def curvature(self, total: Tensor) -> Tensor:
        """Of a loss that was made of what was seen."""
        with torch.enable_grad():
            starts = [seen.loss for seen in self.losses]
            weights = torch.autograd.grad(total, starts, allow_unused=True, materialize_grads=True)
            found = [_second_derivative(*pair) for pair in zip(self.losses, weights, strict=True)]
        return torch.stack([value.to(found[0].dtype) for value in found]).sum().clamp(min=0)


def _of_first(function: Callable, rest: tuple, kwargs: dict[str, Any], first: Tensor) -> Tensor:
    return function(first, *rest, **kwargs)


def _second_derivative(seen: _Seen, weight: Tensor) -> Tensor:
    """jᵀ H j of a weighted sum of losses."""
    wide = torch.promote_types(seen.z.dtype, torch.float32)
    z, tangent = seen.z.to(wide, copy=True).requires_grad_(), seen.tangent.to(wide)
    (gradient,) = torch.autograd.grad((seen.function(z) * weight).sum(), z, create_graph=True)
    (product,) = torch.autograd.grad((gradient * tangent).sum(), z, materialize_grads=True)
    return (product * tangent).sum()
