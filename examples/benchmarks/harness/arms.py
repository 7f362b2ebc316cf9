"""The optimizers that are compared, all with the same weight decay on the same parameters.

Three numbers of an arm are tuned: its learning rate, its momentum, and the ratio r of the learning rate of tables and
heads to that of everything else. Muon, NorMuon and SOAP-Muon share one routing (``roles``, ``peers.matrices``): hidden
matrices get their update, one a part of a fused projection; tables, heads and vectors get AdamW with β (0.9, 0.95), at
the same learning rate, times r for tables and heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer, create_riemannian_optimizer
from torch import nn
from transformers import Adafactor

from adafisher_hf import AdaFisherW

from .roles import tables

WEIGHT_DECAY = 0.1
BETA2 = 0.95
RATIOS = (1.0, 4.0, 16.0, 64.0)

Groups = list[dict[str, Any]]
Build = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class Point:
    """What an arm is set to; None: the arm has no momentum."""

    lr: float
    momentum: Any
    ratio: float

    def __str__(self) -> str:
        return f"{rate(self.lr)}, {beta(self.momentum)}, {self.ratio:g}"


@dataclass(frozen=True)
class Arm:
    """An optimizer under a name. ``make(groups, model, lr=…, **knobs)`` builds it.

    Attributes:
        ratio: learning rate of tables and heads, as a multiple of that of the rest; None: the optimizer's own.
        finds_tables: the optimizer knows tables and heads by itself, and takes the ratio as ``vocabulary_lr``.
        momentum: under which name ``make`` takes the momentum.
        momenta: what it may be.
        ratios: what the ratio may be.
        start: where tuning begins.
    """

    name: str
    make: Build
    knobs: Mapping[str, Any] = field(default_factory=dict)
    ratio: float | None = None
    finds_tables: bool = False
    momentum: str = ""
    momenta: tuple[Any, ...] = (None,)
    ratios: tuple[float, ...] = RATIOS
    start: Point = Point(3e-3, None, 4.0)

    def describe(self) -> dict[str, Any]:
        ratio = {} if self.ratio is None else {"ratio": self.ratio}
        return {"name": self.name, "optimizer": self.make.__name__, "knobs": dict(self.knobs), **ratio}

    def at(self, point: Point) -> Arm:
        """The same with this momentum and ratio."""
        momentum = {} if point.momentum is None else {self.momentum: point.momentum}
        return replace(self, knobs={**self.knobs, **momentum}, ratio=point.ratio)

    def build(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        if self.ratio is None:
            return self.make(decay_groups(model, lr), model, lr=lr, **self.knobs)
        if self.finds_tables:
            return self.make(decay_groups(model, lr), model, lr=lr, vocabulary_lr=self.ratio, **self.knobs)
        return self.make(decay_groups(model, lr, self.ratio), model, lr=lr, **self.knobs)


def decay_groups(model: nn.Module, lr: float, ratio: float = 1.0) -> Groups:
    """Matrices decay, norm weights and biases do not; tables and heads learn at ``ratio`` times the rate."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    faster = tables(model) if ratio != 1 else set()
    matrices = [parameter for parameter in parameters if parameter.dim() > 1]
    groups = [
        {"params": [p for p in matrices if id(p) not in faster], "lr": lr, "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in matrices if id(p) in faster], "lr": ratio * lr, "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() < 2], "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, **knobs)


def adafisherw(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    # Where the ratio is not tuned it is 1 for every arm.
    return AdaFisherW(groups, model=model, **{"vocabulary_lr": 1.0, **knobs})


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


def adamw_8bit(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit  # type: ignore[attr-defined]

    return AdamW8bit(groups, **knobs)


def riemannian(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    """AdamW on gradients that the Gram of the other factor has divided. The groups are PEFT's own."""
    return create_riemannian_optimizer(cast(PeftModel, model), torch.optim.AdamW, weight_decay=WEIGHT_DECAY, **knobs)


def lorarite(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    """The groups are its own: it pairs factors by their order."""
    from .peers.lorarite import LoraRite

    return LoraRite(model, weight_decay=WEIGHT_DECAY, **knobs)


def soap(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    from pytorch_optimizer import SOAP

    return SOAP(groups, **knobs)


def muon(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    from .peers.muon import Muon

    return Muon(groups, model, **knobs)


def normuon(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    from .peers.normuon import NorMuon

    return NorMuon(groups, model, **knobs)


def soap_muon(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    from .peers.soap_muon import SoapMuon

    return SoapMuon(groups, model, **knobs)


def rate(lr: float) -> str:
    mantissa, exponent = f"{lr:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def beta(momentum: Any) -> str:
    """As in a table: an arm without one has a dash."""
    if momentum is None:
        return "–"
    return f"{momentum:g}" if isinstance(momentum, float) else f"({', '.join(f'{part:g}' for part in momentum)})"
