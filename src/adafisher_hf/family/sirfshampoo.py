"""SIRFShampoo: Shampoo without roots and without inverses, so that half precision is enough for it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..config.family import SIRFShampooConfig
from ..layers import accumulation_dtype
from ..ranks import local, part_of, sums_of_shards, whole, zeros_like
from .base import FamilyOptimizer, State
from .factors import Factor, dense_factor, diagonal_factor


class SIRFShampoo(FamilyOptimizer):
    """Structured inverse-free and root-free Shampoo (arXiv 2402.03496, ICML 2024).

    Gradient G of a loss that is the mean over B samples, with N ways of size d_n, and G̃ = √B G ×_n K_nᵀ for all n::

        m_n ← α₂ m_n + (1 - α₂) ½ [ G̃_(n) G̃_(n)ᵀ / Π_{j≠n} d_j + λ Π_{j≠n} tr(K_jᵀ K_j)/d_j · K_nᵀ K_n - I ]
        K_n ← K_n (I - β₂ m_n / max(1, ‖m_n‖));   u = G ×_n K_n K_nᵀ + κ θ;   v ← α₁ v + u;   θ ← θ - lr v

    K = I and m = 0 at the start, factors every T steps. A way of size 1 has no factor, one longer than
    ``max_factor_dim`` has the diagonal of all this. ``structure="diagonal"`` has one k for each element of the tensor
    instead::

        m ← α₂ m + (1 - α₂) ½ (B g² k² + λ k² - 1);   k ← k (1 - β₂ m / max(1, ‖m‖));   u = g k² + κ θ

    The rule is that of the package ``sirfshampoo`` 0.0.1 (MIT), which the tests follow to 5e-15. It is not wrapped: its
    factors are no part of ``self.state`` and do not load with ``weights_only=True``, parameters are known by their
    ``data_ptr`` (FSDP2 exchanges them), it has dense factors alone, and waits for the device at every factor.

    With FSDP2 every rank gathers the gradient of one parameter after the other and computes the same factors.

    Args:
        params: tensors, named tensors, parameter groups, or a model.
        lr: learning rate.
        batch_size: B, samples that the loss is a mean of, over micro-batches and ranks; sequences, where it is a mean
            over their tokens. The Trainer gives its own.
        weight_decay: κ.
        knobs: the other fields of ``SIRFShampooConfig``.

    Raises:
        ValueError: no batch size; or see ``FamilyOptimizer``.
        TypeError: see ``FamilyOptimizer``.
    """

    name = "sirfshampoo"
    config_class = SIRFShampooConfig

    def __init__(
        self,
        params: Iterable | nn.Module,
        lr: float | Tensor = 1e-3,
        *,
        batch_size: int | None = None,
        weight_decay: float = 0.0,
        **knobs: Any,
    ) -> None:
        super().__init__(params, lr, weight_decay, {"batch_size": batch_size, **knobs})

    def initial_state(self, param: Any, group: dict[str, Any], device: torch.device) -> State:
        """The momentum, and factors with their momenta: of a dense one (d_n, d_n), of a diagonal one (d_n,)."""
        dtype = torch.bfloat16 if group["state_dtype"] == "bfloat16" else accumulation_dtype(param.dtype)
        form = FORMS[group["structure"]]
        return {"momentum_buffer": zeros_like(param, dtype, device), **form.init(param, group, dtype, device)}

    def update(self) -> None:
        """One parameter after the other."""
        for group in self.param_groups:
            if group["batch_size"] is None:
                raise ValueError("SIRFShampoo needs batch_size=…, the number of samples that the loss is a mean of")
            params = self.with_gradient(group)
            for param, step in zip(params, self.count_step(params), strict=True):
                self._update_one(param, group, refreshes=(step - 1) % group["update_interval"] == 0)

    def _update_one(self, param: Tensor, group: dict[str, Any], *, refreshes: bool) -> None:
        state = self.state[param]
        update = FORMS[group["structure"]].direction(param, state, group, refreshes)
        if group["weight_decay"]:
            update = update.add(local(param).to(update.dtype), alpha=group["weight_decay"])
        momentum = local(state["momentum_buffer"])
        momentum.mul_(group["momentum"]).add_(update)
        wide = accumulation_dtype(param.dtype)
        self.subtract([param], [momentum.to(wide, copy=True).mul_(float(group["lr"]))])


class Kronecker:
    """A factor for each way of a tensor, the same on all ranks."""

    @staticmethod
    def init(param: Any, group: dict[str, Any], dtype: torch.dtype, device: torch.device) -> State:
        """The identity, and a momentum of zero, for each way."""
        state: State = {}
        for n, size in enumerate(ways_of(param.shape, group["tensors"])):
            kind = dense_factor if size <= group["max_factor_dim"] else diagonal_factor
            state[f"factor_{n}"] = kind.identity(size, dtype, device)
            state[f"factor_momentum_{n}"] = torch.zeros_like(state[f"factor_{n}"])
        return state

    @classmethod
    def direction(cls, param: Any, state: State, group: dict[str, Any], refreshes: bool) -> Tensor:
        """G ×_n K_n K_nᵀ, the part that is on this rank."""
        ways = ways_of(param.shape, group["tensors"])
        factors = [state[f"factor_{n}"] for n in range(len(ways))]
        grad = whole(param.grad).to(factors[0].dtype).reshape(ways)
        if refreshes:
            momenta = [state[f"factor_momentum_{n}"] for n in range(len(ways))]
            cls._refresh(grad, factors, momenta, group)
        for n, factor in enumerate(factors):
            kind = _kind(factor)
            grad = kind.apply(kind.apply(grad, factor, n, transposed=True), factor, n)
        return part_of(grad.reshape(param.shape), param)

    @staticmethod
    def _refresh(grad: Tensor, factors: list[Tensor], momenta: list[Tensor], group: dict[str, Any]) -> None:
        sizes = grad.shape
        scaled = grad * math.sqrt(group["batch_size"])
        for n, factor in enumerate(factors):
            # Divided by √d_n here, not by Π d_j in the end: in half precision sums over long ways would lose digits.
            scaled = _kind(factor).apply(scaled, factor / math.sqrt(sizes[n]), n, transposed=True)
        traces = [_kind(factor).mean_square(factor) for factor in factors]
        for n, (factor, momentum) in enumerate(zip(factors, momenta, strict=True)):
            kind = _kind(factor)
            others = math.prod(traces[:n] + traces[n + 1 :], start=torch.ones_like(traces[n]))
            change = kind.second_moment(scaled, n) * sizes[n]
            change = change + kind.gram(factor) * (group["damping"] * others)
            change = (change - kind.identity(sizes[n], grad.dtype, grad.device)) / 2
            momentum.lerp_(change, 1 - group["factor_momentum"])
            length = torch.linalg.vector_norm(momentum).clamp(min=1)
            factor.sub_(kind.product(factor, momentum) * (group["factor_lr"] / length))


class Elementwise:
    """One number for each element of a tensor, split as the tensor is."""

    @staticmethod
    def init(param: Any, group: dict[str, Any], dtype: torch.dtype, device: torch.device) -> State:
        """k = 1 and m = 0."""
        factor = zeros_like(param, dtype, device)
        local(factor).fill_(1)
        return {"factor": factor, "factor_momentum": zeros_like(param, dtype, device)}

    @staticmethod
    def direction(param: Any, state: State, group: dict[str, Any], refreshes: bool) -> Tensor:
        """g k², the part that is on this rank."""
        factor, momentum = local(state["factor"]), local(state["factor_momentum"])
        grad = local(param.grad).to(factor.dtype)
        if refreshes:
            square = factor.square()
            change = (group["batch_size"] * grad.square() * square + group["damping"] * square - 1) / 2
            momentum.lerp_(change, 1 - group["factor_momentum"])
            (length,) = sums_of_shards([torch.linalg.vector_norm(momentum).square()], [param])
            factor.sub_(factor * momentum * (group["factor_lr"] / length.sqrt().clamp(min=1)))
        return grad * factor.square()


FORMS: dict[str, Any] = {"dense": Kronecker, "diagonal": Elementwise}


def ways_of(shape: torch.Size, tensors: str) -> tuple[int, ...]:
    """The sizes of the ways of a tensor, its own or those of a matrix, without those of 1; there is one at least."""
    ways = (shape[0], math.prod(shape[1:])) if tensors == "matrix" and len(shape) > 2 else shape
    return tuple(size for size in ways if size != 1) or (1,)


def _kind(factor: Tensor) -> Factor:
    return dense_factor if factor.ndim == 2 else diagonal_factor
