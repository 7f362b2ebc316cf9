"""SOAP by name: pytorch-optimizer's, with options that are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..config.family import SOAPConfig
from ..config.groups import as_list, check_parameters, check_rates, listed
from ..ranks import is_sharded
from .base import check_groups
from .model import MadeWithModel, model_of
from .muon import layouts_of

try:
    from pytorch_optimizer import SOAP as Published
except ImportError as error:
    raise ImportError('SOAP needs the package pytorch-optimizer: pip install "adafisher-hf[family]"') from error


class SOAP(MadeWithModel, Published):
    """SOAP (arXiv 2409.11321, ICLR 2025): Adam in the eigenbasis of Shampoo's factors. The step is the package's.

    Of a matrix with gradient G::

        L ← β L + (1 - β) G Gᵀ;   R ← β R + (1 - β) Gᵀ G;   Q_L, Q_R: their eigenvectors, turned every f steps by one QR
        m ← β₁ m + (1 - β₁) G;   v ← β₂ v + (1 - β₂) (Q_Lᵀ G Q_R)²;   u = Q_L [(Q_Lᵀ m Q_R) / (√v + ε)] Q_Rᵀ
        θ ← (1 - lr λ) (θ - lr √(1 - β₂ᵗ) / (1 - β₁ᵗ) u)

    A tensor of more ways has a factor for each of them; a way longer than ``max_precondition_dim`` has none, as
    embeddings and heads along the vocabulary; vectors have Adam's update. The first gradient makes the bases, and takes
    no step. All state has the dtype of the parameter, and half-precision weights round to nearest.

    Args:
        params: tensors, named tensors, parameter groups, or the model.
        lr: learning rate.
        model: that the parameters belong to.
        network: the same, under a name that ``Trainer.create_optimizer`` does not claim for itself.
        weight_decay: λ.
        knobs: the fields of ``SOAPConfig``.

    Raises:
        ImportError: pytorch-optimizer is not installed.
        ValueError: no model, a parameter that is not one of the model's, or split by FSDP2; or see ``FamilyOptimizer``.
        TypeError: see ``FamilyOptimizer``.
    """

    name = "soap"
    config_class = SOAPConfig

    def __init__(
        self,
        params: Iterable | nn.Module,
        lr: float | Tensor = 3e-3,
        *,
        model: nn.Module | None = None,
        network: nn.Module | None = None,
        weight_decay: float = 0.01,
        **knobs: Any,
    ) -> None:
        self.config = SOAPConfig.from_knobs(knobs).resolved()
        self.model = model_of(params, (model, network), "SOAP needs the model, to know its vocabulary")
        check_rates({"lr": lr, "weight_decay": weight_decay})
        super().__init__(listed(params), lr=cast(float, lr), weight_decay=weight_decay, **_of_package(self.config))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group and checks it; embeddings and heads become a group of their own.

        Raises:
            ValueError, TypeError: see the class.
        """
        items = as_list(param_group["params"])
        params = [item[1] if isinstance(item, tuple) else item for item in items]
        check_rates({**self.defaults, **param_group})
        check_parameters(params)
        _refuse_shards(params)
        roles = [layout.role for layout in layouts_of(self.model, params)]
        for multiple, wanted in ((1.0, False), (self.config.vocabulary_lr, True)):
            chosen = [item for item, role in zip(items, roles, strict=True) if (role == "vocabulary") is wanted]
            if chosen:
                own = {"params": chosen, "optimizer": self.name, "lr_multiple": multiple}
                super().add_param_group({**param_group, **own})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step of the package's.

        Args:
            closure: zeroes the gradients, runs forward and backward pass and returns the loss.

        Returns:
            What the closure returned.
        """
        _refuse_shards(param for group in self.param_groups for param in group["params"])
        with self._multiplied_rates():
            return super().step(closure)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state. The options stay those of this optimizer, also where the saved one had others.

        Raises:
            ValueError: it is of another optimizer, or made for another model; nothing was loaded.
        """
        check_groups(state_dict, self.param_groups, self.name, type(self).__name__)
        multiples = [group["lr_multiple"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, multiple in zip(self.param_groups, multiples, strict=True):
            group.update(_of_package(self.config), lr_multiple=multiple)
            for state in (self.state[param] for param in group["params"] if self.state.get(param)):
                state.update({key: group[key] for key in ("precondition_frequency", "shampoo_beta")})

    @contextmanager
    def _multiplied_rates(self) -> Iterator[None]:
        """Within it embeddings and heads have their own learning rate."""
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["lr"] * group["lr_multiple"]
        try:
            yield
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate


def _of_package(config: SOAPConfig) -> dict[str, Any]:
    """The options under the package's names."""
    knobs = config.to_dict()
    del knobs["vocabulary_lr"]
    return {**knobs, "betas": (knobs.pop("beta1"), knobs.pop("beta2"))}


def _refuse_shards(params: Iterable[Any]) -> None:
    if any(map(is_sharded, params)):
        raise ValueError("SOAP does not work with FSDP2: pytorch-optimizer's takes no parameter that is split; use DDP")
