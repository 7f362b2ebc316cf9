"""FAdam: Adam as a natural gradient, with the diagonal of the empirical Fisher information."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..compat import foreach_add, foreach_addcmul, foreach_div, foreach_mul, foreach_norm, foreach_pow
from ..config.family import FAdamConfig
from ..layers import accumulation_dtype
from ..ranks import local, sums_of_shards, zeros_like
from .base import FamilyOptimizer, State

Measure = Callable[[Sequence[Tensor]], list[Tensor]]  # the root mean square of each tensor, a scalar


class FAdam(FamilyOptimizer):
    """FAdam (arXiv 2405.12807v3): the momentum is of natural gradients, and the weight decay is natural too.

    With t from 1, every root mean square that of a whole parameter::

        β̂₂ = β₂ (1 - β₂^(t-1)) / (1 - β₂^t);   F ← β̂₂ F + (1 - β̂₂) g²;   ε̂ = min(ε, 0.01 rms(g))
        n = g / (F^p + ε̂^(2p));   n ← n / max(1, rms(n)/clip);   m ← β₁ m + (1 - β₁) n
        w = θ / (F^p + ε̂^(2p));   w ← w / max(1, rms(w)/clip);   θ ← θ - lr (m + λ w)

    The rule is that of ``pytorch_optimizer.FAdam`` 4.1 (Apache-2.0), which the tests follow step by step. It is not
    wrapped: it takes no root mean square of parameters that FSDP2 splits (an error of DTensor), keeps float32 state of
    float64 weights, makes state only where there is a gradient (distributed checkpoints drop what appears later), and
    rounds half-precision weights to nearest.

    Args:
        params: tensors, named tensors, parameter groups, or a model.
        lr: learning rate.
        weight_decay: λ.
        knobs: the fields of ``FAdamConfig``.

    Raises:
        ValueError, TypeError: see ``FamilyOptimizer``.
    """

    name = "fadam"
    config_class = FAdamConfig

    def __init__(
        self, params: Iterable | nn.Module, lr: float | Tensor = 1e-3, *, weight_decay: float = 0.1, **knobs: Any
    ) -> None:
        super().__init__(params, lr, weight_decay, knobs)

    def initial_state(self, param: Any, group: dict[str, Any], device: torch.device) -> State:
        """Momentum and Fisher diagonal, both of the parameter's shape, float32 at least."""
        dtype = accumulation_dtype(param.dtype)
        return {key: zeros_like(param, dtype, device) for key in ("exp_avg", "fisher")}

    def update(self) -> None:
        """Group by group, all parameters of a group at once."""
        for group in self.param_groups:
            params = self.with_gradient(group)
            if params:
                self._update_group(group, params)

    def _update_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        def measure(parts: Sequence[Tensor]) -> list[Tensor]:
            squares = sums_of_shards([norm.square() for norm in foreach_norm(list(parts))], params)
            return [(square / param.numel()).sqrt() for square, param in zip(squares, params, strict=True)]

        wide = [accumulation_dtype(param.dtype) for param in params]
        rule = Rule(group["beta1"], group["beta2"], group["eps"], group["eps2"], group["clip"], group["p"])
        updates = natural_step(
            [local(param).to(dtype) for param, dtype in zip(params, wide, strict=True)],
            [local(param.grad).to(dtype) for param, dtype in zip(params, wide, strict=True)],
            [local(self.state[param]["exp_avg"]) for param in params],
            [local(self.state[param]["fisher"]) for param in params],
            self.count_step(params),
            rule,
            float(group["weight_decay"]),
            measure,
        )
        foreach_mul(updates, float(group["lr"]))
        self.subtract(params, updates)


class Rule(NamedTuple):
    """The constants of a step."""

    beta1: float
    beta2: float
    eps: float
    eps2: float
    clip: float
    p: float


def natural_step(
    weights: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    fishers: list[Tensor],
    steps: Sequence[int],
    rule: Rule,
    weight_decay: float,
    measure: Measure,
) -> list[Tensor]:
    """m + λ w of every parameter, as the class says.

    Args:
        weights, grads: of one shape and dtype each.
        momenta, fishers: m and F, of the same shapes; updated in place.
        steps: t of each, from 1.
        weight_decay: λ.
        measure: the root mean square of each tensor of a list like these.
    """
    decays = [rule.beta2 * (1 - rule.beta2 ** (t - 1)) / (1 - rule.beta2**t) for t in steps]
    foreach_mul(fishers, decays)
    foreach_addcmul(fishers, grads, grads, [1 - decay for decay in decays])
    divisors = foreach_pow(fishers, rule.p)
    foreach_add(divisors, [_stabilizer(length, rule) for length in measure(grads)])
    naturals = _clipped_quotients(grads, divisors, rule.clip, measure)
    foreach_mul(momenta, rule.beta1)
    foreach_mul(naturals, 1 - rule.beta1)
    foreach_add(momenta, naturals)
    if not weight_decay:
        return [momentum.clone() for momentum in momenta]
    updates = _clipped_quotients(weights, divisors, rule.clip, measure)
    foreach_mul(updates, weight_decay)
    foreach_add(updates, momenta)
    return updates


def _stabilizer(length: Tensor, rule: Rule) -> Tensor:
    """ε̂^(2p); a gradient of nothing but zeros has ε itself, where the formula would divide by zero."""
    eps = torch.where(length > 0, (rule.eps2 * length).clamp(max=rule.eps), rule.eps)
    return eps ** (2 * rule.p)


def _clipped_quotients(
    values: Sequence[Tensor], divisors: Sequence[Tensor], clip: float, measure: Measure
) -> list[Tensor]:
    """values / divisors, each brought down to a root mean square of ``clip``."""
    quotients = foreach_div(list(values), list(divisors))
    lengths = [(length / clip).clamp(min=1) for length in measure(quotients)]
    return list(foreach_div(quotients, lengths))
