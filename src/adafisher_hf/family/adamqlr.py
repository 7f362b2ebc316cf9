"""AdamQLR: Adam's direction, with learning rate and damping chosen at every step by a quadratic model of the loss."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..config.family import AdamQLRConfig
from ..layers import accumulation_dtype
from ..ranks import is_sharded, mean_over_ranks, zeros_like
from .base import FamilyOptimizer, State
from .curvature import ForwardProduct
from .model import MadeWithModel, model_of
from .passes import ForwardPass, Randomness, Recorder, loss_now

logger = logging.getLogger(__name__)

LEAST_DAMPING = 1e-8
MUCH_DECAY = 0.01  # of every weight, at every step


class AdamQLR(MadeWithModel, FamilyOptimizer):
    """AdamQLR (arXiv 2310.14963, ICML 2024): Adam, with K-FAC's choice of learning rate and damping.

    With Adam's direction d = -m̂ / (√v̂ + ε) and the Gauss-Newton matrix C = Jᵀ H J of the batch::

        q = dᵀ C d + λ dᵀd;   α = -gᵀd / q  (within ± lr_clip);   θ' = θ + α d - wd θ
        ρ = (L(θ') - L(θ)) / (½ α² q + α gᵀd);   ρ > ¾: λ ← ω_dec λ;   ρ < ¼: λ ← ω_inc λ;   λ ≥ 1e-8

    dᵀ C d and gᵀd come from one forward-mode product, L(θ') from one more forward pass, both with the inputs and the
    random numbers (dropout) of the training pass; gᵀd is that of the loss, whatever clips the gradients. The authors'
    code (JAX) adds up the squared errors of a sample and halves them; here H is that of the loss as it is, averages
    and masks included. A product takes attention apart: no fused kernel has a forward-mode derivative.

    The batch is what the model was called with since the last step, if it returns its loss as the models of
    transformers do: several micro-batches count together, and ranks (DDP) agree on one α and λ. Any other loss takes
    a closure.

    Args:
        params: tensors, named tensors, parameter groups, or the model.
        lr: only how it changes counts: a schedule multiplies the whole step by lr / (lr at the start).
        model: that the parameters belong to, and that the loss is computed with.
        network: the same, under a name that ``Trainer.create_optimizer`` does not claim for itself.
        weight_decay: wd. No learning rate makes it smaller: 0.01 takes 1 % of every weight away at every step.
        knobs: the fields of ``AdamQLRConfig``.

    Raises:
        ValueError: no model, or a parameter that is not one of the model's; or see ``FamilyOptimizer``.
        TypeError: see ``FamilyOptimizer``.
    """

    name = "adamqlr"
    config_class = AdamQLRConfig
    moving = ("damping",)

    def __init__(
        self,
        params: Iterable | nn.Module,
        lr: float | Tensor = 1.0,
        *,
        model: nn.Module | None = None,
        network: nn.Module | None = None,
        weight_decay: float = 0.0,
        **knobs: Any,
    ) -> None:
        self.model = model_of(params, (model, network), "AdamQLR needs the model to run it again")
        self._recorder, self._product = Recorder(self.model), ForwardProduct(self.model)
        self._passes: list[ForwardPass] = []
        self._figures: dict[str, float] = {}
        weakref.finalize(self, self._recorder.close)
        try:
            super().__init__(params, lr, weight_decay, knobs)
        except BaseException:
            self.close()
            raise
        if weight_decay >= MUCH_DECAY:
            message = "AdamQLR multiplies weight_decay by no learning rate: every step takes %g %% of each weight away"
            logger.warning(message, 100 * weight_decay)

    def initial_state(self, param: Any, group: dict[str, Any], device: torch.device) -> State:
        """Adam's two averages, of the parameter's shape, float32 at least."""
        dtype = accumulation_dtype(param.dtype)
        return {key: zeros_like(param, dtype, device) for key in ("exp_avg", "exp_avg_sq")}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group and checks it.

        Raises:
            ValueError, TypeError: see the class.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("initial_lr", float(group["lr"]))  # as schedules have it
        group["damping"] = self.param_groups[0]["damping"]
        try:
            self._names(group["params"])
        except BaseException:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step, with a forward-mode product and one more forward pass.

        Args:
            closure: computes the loss of the batch and returns it, with or without ``backward()``. It is called three
                times, on the same random numbers; the second and third time its ``backward()`` does nothing. None: the
                model has returned the loss.

        Returns:
            What the closure returned the first time.

        Raises:
            ValueError: the loss of the batch cannot be computed again, or not be differentiated forwards.
        """
        if closure is None:
            self._passes = self._recorder.passes
        try:
            return super().step(closure if closure is None else partial(self._first_pass, closure))
        finally:
            self._passes = []
            self._recorder.clear()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, and forgets the batches that they are of."""
        super().zero_grad(set_to_none)
        self._recorder.clear()

    def update(self) -> None:
        """Chooses α, moves the weights, and judges by the loss after it."""
        passes = self._seen_passes()
        directions = self._directions()
        named = self._names(directions)
        schedule = self._schedule()
        with self._recorder.silence(), self._kept_gradients():
            found = self._product.along(passes, {name: directions[p] for name, p in named.items()})
            before = torch.stack([one.loss * one.scale for one in passes]).sum()
            slope, curvature, before = mean_over_ranks(torch.stack([x.to(found.curvature) for x in (*found, before)]))
            squares = torch.stack([torch.linalg.vector_norm(d).square() for d in directions.values()]).sum()
            q = curvature + self.param_groups[0]["damping"] * squares.to(curvature)
            alpha = self._learning_rate(slope, q) * schedule
            self._move(directions, alpha, schedule)
            after = mean_over_ranks(loss_now(self.model, passes).to(alpha))
        self._judge(*torch.stack([alpha, slope, q, before, after]).tolist())  # waits for the device once

    def logged(self) -> dict[str, float]:
        """What the last step has chosen: ``adamqlr/lr``, ``adamqlr/damping``, and ``adamqlr/rho``, which decided."""
        return {f"{self.name}/{key}": value for key, value in self._figures.items()}

    def close(self) -> None:
        """Takes the hooks off the model; after that only closures are left."""
        self._recorder.close()

    # The parts of a step ----------------------------------------------------------------------------------------------

    def _first_pass(self, closure: Callable[[], Any]) -> Any:
        """Loss and gradients, and what is needed to do it again."""
        randomness = Randomness(list(self.model.parameters()))
        self.zero_grad()
        loss = closure()
        if not isinstance(loss, Tensor):
            raise TypeError(f"the closure must return the loss, a tensor, not {loss!r}")
        if all(param.grad is None for _, param in self._params()):
            loss.backward()
        self._passes = [ForwardPass(closure, randomness, loss.detach().clone())]
        return loss

    def _seen_passes(self) -> list[ForwardPass]:
        if self._passes:
            return self._passes
        if self._recorder.without_loss:
            raise ValueError(
                "AdamQLR computes the loss of a batch once more, and the model returned none: pass labels to it (no "
                "label smoothing, no loss of your own around it), or give step() a closure"
            )
        raise ValueError(
            "AdamQLR has seen no forward and backward pass of its model since the last step: call the model that it "
            "was made with, not a compiled one, or give step() a closure"
        )

    def _directions(self) -> dict[Tensor, Tensor]:
        """d of every parameter that has a gradient."""
        found = {}
        for group in self.param_groups:
            beta1, beta2 = group["beta1"], group["beta2"]
            params = self.with_gradient(group)
            for param, step in zip(params, self.count_step(params), strict=True):
                m, v = self.state[param]["exp_avg"], self.state[param]["exp_avg_sq"]
                grad = param.grad.to(m.dtype)
                m.lerp_(grad, 1 - beta1)
                v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                root = (v / (1 - beta2**step)).sqrt_().add_(group["eps"])
                found[param] = (m / (beta1**step - 1)).div_(root)
        return found

    def _learning_rate(self, slope: Tensor, q: Tensor) -> Tensor:
        clip = self.param_groups[0]["lr_clip"]
        alpha = torch.where(q > 0, -slope / q, 0.0)
        return alpha if clip is None else alpha.clamp(-clip, clip)

    def _move(self, directions: dict[Tensor, Tensor], alpha: Tensor, schedule: float) -> None:
        for group in self.param_groups:
            for param in [param for param in group["params"] if param in directions]:
                direction = directions[param]
                update = direction.mul_(-alpha.to(direction))
                if group["weight_decay"]:
                    update.add_(param.to(update.dtype), alpha=schedule * float(group["weight_decay"]))
                self.subtract([param], [update])

    def _judge(self, alpha: float, slope: float, q: float, before: float, after: float) -> None:
        """Moves λ, by how well the quadratic model told the loss."""
        group = self.param_groups[0]
        told = alpha**2 * q / 2 + alpha * slope
        rho = (after - before) / told if told else math.nan
        factor = 1.0
        if rho > 3 / 4:
            factor = group["damping_decrease"]
        elif rho < 1 / 4:
            factor = group["damping_increase"]
        damping = max(factor * group["damping"], LEAST_DAMPING)
        self._figures = {"lr": alpha, "damping": group["damping"], "rho": rho}
        for group in self.param_groups:
            group["damping"] = damping

    def _schedule(self) -> float:
        """By how much a schedule has changed the learning rate since the start.

        Raises:
            ValueError: not in all groups alike.
        """
        starts = [float(group["initial_lr"]) for group in self.param_groups]
        factors = [
            float(group["lr"]) / start if start else 0.0 for group, start in zip(self.param_groups, starts, strict=True)
        ]
        if not all(math.isclose(factor, factors[0], abs_tol=1e-12) for factor in factors):
            raise ValueError(f"AdamQLR takes one schedule for all parameter groups, not factors of {factors}")
        return factors[0]

    def _names(self, params: Iterable[Any]) -> dict[str, Tensor]:
        """The parameters by their names in the model.

        Raises:
            ValueError: one is not there, or FSDP2 has split it.
        """
        names = {id(param): name for name, param in self.model.named_parameters()}
        found = {}
        for param in params:
            if is_sharded(param):
                raise ValueError(
                    "AdamQLR does not work with FSDP2: no forward-mode product goes through its gathers; use DDP"
                )
            if id(param) not in names:
                raise ValueError(
                    f"a parameter of shape {tuple(param.shape)} is not one of the model's: pass the model whose "
                    "parameters are optimized, and make the optimizer when it is complete"
                )
            found[names[id(param)]] = param
        return found

    @contextmanager
    def _kept_gradients(self) -> Iterator[None]:
        """A closure may zero them when it runs again."""
        kept = [(param, param.grad) for _, param in self._params()]
        try:
            yield
        finally:
            for param, grad in kept:
                param.grad = grad
