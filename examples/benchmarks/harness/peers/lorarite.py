"""LoRARite (Yen et al. 2024) on the factors of adapters, AdamW on what else is trained."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_optimizer import LoRARite
from torch import nn


class LoraRite(torch.optim.Optimizer):
    """Both as one optimizer: schedules see all groups.

    pytorch-optimizer's LoRARite pairs factors by their order, so it has to get nothing else.
    """

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float):
        named = {name: param for name, param in model.named_parameters() if param.requires_grad}
        pairs = [(a, named[name.replace("lora_A", "lora_B")]) for name, a in named.items() if "lora_A" in name]
        factors = [factor for pair in pairs for factor in pair]
        others = [param for name, param in named.items() if "lora_" not in name]
        options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        self.parts: list[Any] = [
            LoRARite(factors, **options),
            *([torch.optim.AdamW(others, **options)] if others else []),
        ]
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"state": {i: part.state_dict()["state"] for i, part in enumerate(self.parts)}}
