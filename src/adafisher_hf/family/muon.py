"""Muon by name: torch's own for the hidden matrices of a model, AdamW for all the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from ..compat import functional_muon
from ..config.family import MuonConfig
from ..layers import Layout, accumulation_dtype
from ..ranks import DEEPSPEED, local, part_of, whole, zeros_like
from ..statistics.owners import find_owners
from ..statistics.roles import Roles
from .base import FamilyOptimizer, State
from .model import MadeWithModel, model_of

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # as in torch and in its author's code
TINY = 1e-7  # norms below are taken for this


class Muon(MadeWithModel, FamilyOptimizer):
    """Muon (Jordan et al., 2024), the update of ``torch.optim.Muon``, for matrices found by their role in the model.

    Of a hidden matrix with gradient G, of size (A, B)::

        m ← μ m + (1 - μ) G;   u = μ m + (1 - μ) G  (without Nesterov: m);   O = NS(u)
        θ ← (1 - lr λ) θ - 0.2 √max(A, B) lr O

    NS are Newton-Schulz steps, which bring all singular values near 1. The factor is Moonlight's (arXiv 2502.16982): it
    gives the update AdamW's size, so that one learning rate serves both. Hidden matrices are the weights between the
    embeddings and the head: what ``structure="orthogonal"`` orthogonalises. A convolution is one as (out, in · k · k);
    each part of a fused projection that the model is known by, and each expert of a stack, is one for itself. All else
    gets ``torch.optim.AdamW``: embeddings, heads, vectors, routers, adapters, and what nobody knows.

    With FSDP2 every rank gathers gradient and momentum of one hidden matrix after the other.

    Args:
        params: tensors, named tensors, parameter groups, or the model.
        lr: learning rate of both parts.
        model: that the parameters belong to.
        network: the same, under a name that ``Trainer.create_optimizer`` does not claim for itself.
        weight_decay: λ.
        knobs: the fields of ``MuonConfig``.

    Raises:
        ValueError: no model, or a parameter that is not one of the model's; or see ``FamilyOptimizer``.
        TypeError: see ``FamilyOptimizer``.
        ImportError: torch is older than 2.9.
    """

    name = "muon"
    config_class = MuonConfig

    def __init__(
        self,
        params: Iterable | nn.Module,
        lr: float | Tensor = 1e-3,
        *,
        model: nn.Module | None = None,
        network: nn.Module | None = None,
        weight_decay: float = 0.1,
        **knobs: Any,
    ) -> None:
        if functional_muon is None:
            raise ImportError('Muon needs torch 2.9 or later: pip install "adafisher-hf[family]"')
        self.model = model_of(params, (model, network), "Muon needs the model, to know hidden matrices")
        self._layouts: dict[int, Layout] = {}  # by id, in the order of the groups
        super().__init__(params, lr, weight_decay, knobs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group and checks it.

        Raises:
            ValueError, TypeError: see the class.
        """
        super().add_param_group(param_group)
        try:
            params = self.param_groups[-1]["params"]
            self._layouts.update(zip(map(id, params), layouts_of(self.model, params), strict=True))
        except BaseException:
            self.param_groups.pop()
            raise

    def initial_state(self, param: Any, group: dict[str, Any], device: torch.device) -> State:
        """The momentum, or AdamW's two averages; of the parameter's shape, float32 at least."""
        keys = ("momentum_buffer",) if self._bound_layouts()[id(param)].role == "hidden" else ("exp_avg", "exp_avg_sq")
        return {key: zeros_like(param, accumulation_dtype(param.dtype), device) for key in keys}

    def update(self) -> None:
        """One parameter after the other."""
        layouts = self._bound_layouts()
        for group in self.param_groups:
            for param in self.with_gradient(group):
                self._update_one(param, group, layouts[id(param)])

    def _update_one(self, param: Any, group: dict[str, Any], layout: Layout) -> None:
        rate = float(group["lr"]) * (group["vocabulary_lr"] if layout.role == "vocabulary" else 1)
        if layout.role == "hidden":
            change = self._orthogonal_step(param, group, rate, layout)
        else:
            change = self._adam_step(param, group, rate)
        if group["weight_decay"]:
            change.add_(local(param), alpha=-rate * float(group["weight_decay"]))
        self.subtract([param], [change.neg_()])

    def _orthogonal_step(self, param: Any, group: dict[str, Any], rate: float, layout: Layout) -> Tensor:
        """What Muon adds to a parameter, the part that is on this rank."""
        self.count_step([param])
        buffer = self.state[param]["momentum_buffer"]
        change = torch.zeros(param.shape, dtype=buffer.dtype, device=buffer.device)
        tensors = change, whole(param.grad).to(buffer.dtype), whole(buffer)
        parts = [split(tensor, layout) for tensor in tensors]
        functional_muon(
            *[[matrix for part in some for matrix in part] for some in parts],
            lr=rate,
            weight_decay=0.0,
            momentum=group["momentum"],
            nesterov=group["nesterov"],
            ns_coefficients=NEWTON_SCHULZ,
            ns_steps=group["ns_steps"],
            eps=TINY,
            adjust_lr_fn="match_rms_adamw",
            has_complex=False,
        )
        local(buffer).copy_(part_of(join(parts[2], layout).reshape(param.shape), param))
        return part_of(join(parts[0], layout).reshape(param.shape), param)

    def _adam_step(self, param: Any, group: dict[str, Any], rate: float) -> Tensor:
        """What AdamW adds to a parameter, the part that is on this rank."""
        state = self.state[param]
        change = torch.zeros_like(local(state["exp_avg"]))
        adamw(
            [change],
            [local(param.grad).to(change.dtype)],
            [local(state["exp_avg"])],
            [local(state["exp_avg_sq"])],
            [],
            [state["step"]],
            amsgrad=False,
            beta1=group["beta1"],
            beta2=group["beta2"],
            lr=rate,
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
        return change

    def _bound_layouts(self) -> dict[int, Layout]:
        """The layouts by ``id`` of their parameter: FSDP2 puts new ones into the groups, in the old order."""
        ids = [id(param) for _, param in self._params()]
        if not self._layouts.keys() >= set(ids):
            if len(ids) != len(self._layouts):
                raise ValueError(f"the optimizer's parameters were exchanged for {len(ids)} others. {DEEPSPEED}")
            self._layouts = dict(zip(ids, self._layouts.values(), strict=True))
        return self._layouts


def layouts_of(model: nn.Module, params: Iterable[Tensor]) -> list[Layout]:
    """How each parameter lies over its layer, with its role in the model.

    Raises:
        ValueError: one is not the model's.
    """
    owners, roles = find_owners(model), Roles(model)
    found = []
    for param in params:
        if id(param) not in owners:
            raise ValueError(
                f"a parameter of shape {tuple(param.shape)} is not one of the model's: pass the model whose "
                "parameters are optimized, and make the optimizer when it is complete"
            )
        found.append(roles.layouts(param, owners[id(param)])[0])
    return found


def split(tensor: Tensor, layout: Layout) -> list[Tensor]:
    """The matrices of a parameter: a stack (n, rows, columns) for each part of it."""
    stack = tensor.reshape(layout.shape)
    return [stack] if layout.fused is None else layout.fused.split(stack, layout.output_dim)


def join(parts: list[Tensor], layout: Layout) -> Tensor:
    """The stack that ``split`` gives these parts of."""
    return parts[0] if layout.fused is None else layout.fused.join(parts, layout.output_dim)
