"""The optimizers that are compared, all with the same weight decay on the same parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import Adafactor

from adafisher_hf import AdaFisherW

WEIGHT_DECAY = 0.1

Groups = list[dict[str, Any]]
Build = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class Arm:
    """An optimizer under a name. ``make(groups, model, lr=…, **knobs)`` builds it."""

    name: str
    make: Build
    knobs: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "optimizer": self.make.__name__, "knobs": dict(self.knobs)}

    def build(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        return self.make(decay_groups(model), model, lr=lr, **self.knobs)


def decay_groups(model: nn.Module) -> Groups:
    """Matrices decay, norm weights and biases do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in parameters if parameter.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [parameter for parameter in parameters if parameter.dim() < 2], "weight_decay": 0.0},
    ]


def adamw(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, **knobs)


def adafisherw(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    return AdaFisherW(groups, model=model, **knobs)


def adafactor(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    """As the Trainer has it: with a learning rate from outside, without momentum."""
    return Adafactor(groups, scale_parameter=False, relative_step=False, **knobs)


def loraplus(groups: Groups, model: nn.Module, *, ratio: float, **knobs: Any) -> torch.optim.Optimizer:
    """AdamW with a rate that is ``ratio`` times as high for the adapters' B as for A. The groups are PEFT's own."""
    return create_loraplus_optimizer(
        cast(PeftModel, model),
        torch.optim.AdamW,
        loraplus_lr_ratio=ratio,
        loraplus_weight_decay=WEIGHT_DECAY,
        **knobs,
    )


def soap(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    return SOAP(groups, **knobs)


def muon(groups: Groups, model: nn.Module, *, lr: float, **knobs: Any) -> torch.optim.Optimizer:
    """Muon for the matrices of the hidden layers, AdamW for the rest, as its author says; one learning rate for both.

    (``use_adjusted_lr`` gives Muon's update the size of AdamW's.)
    """
    from pytorch_optimizer import Muon

    outer = {
        id(layer.weight)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Embedding) or name.endswith("head")
    }

    def is_hidden(parameter: nn.Parameter) -> bool:
        return parameter.dim() > 1 and id(parameter) not in outer

    parts = [
        {**group, "params": [p for p in group["params"] if is_hidden(p) is use_muon], "use_muon": use_muon, "lr": lr}
        for group in groups
        for use_muon in (True, False)
    ]
    return Muon([part for part in parts if part["params"]], use_adjusted_lr=True, **knobs)


ADAMW = Arm("AdamW", adamw, {"betas": [0.9, 0.95]})
