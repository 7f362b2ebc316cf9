"""The arms of the family's table: AdaFisher in every mode and structure, its relatives, and the baselines.

Three rules beside those of ``arms``: SIRFShampoo is told the number of sequences in a batch; the weight decay of FAdam
is its own natural one; AdamQLR chooses its learning rate itself, and what is tuned is the largest that it may choose,
with the weight decay that AdamW would have at this rate. No ratio means anything to it: one α is for all parameters.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from adafisher_hf import AdamQLR, FAdam, SIRFShampoo

from .arms import BETA2, Arm, Groups, Point
from .contestants import ADAMW, BETAS, DIAGONAL, KRONECKER, MUON, ORTHOGONAL, SOAP

UNTUNED = Point(0.1, (0.9, BETA2), 1.0)  # of AdamQLR: in its authors' code α is 0.1 at most


def fadam(groups: Groups, model: nn.Module, *, betas: tuple[float, float], **knobs: Any) -> torch.optim.Optimizer:
    return FAdam(groups, beta1=betas[0], beta2=betas[1], **knobs)


def sirfshampoo(groups: Groups, model: nn.Module, **knobs: Any) -> torch.optim.Optimizer:
    return SIRFShampoo(groups, **knobs)


def adamqlr(
    groups: Groups, model: nn.Module, *, lr: float, betas: tuple[float, float], **knobs: Any
) -> torch.optim.Optimizer:
    """``lr`` is the largest size of the rate that it chooses."""
    own = [{**group, "lr": 1.0, "weight_decay": lr * group["weight_decay"]} for group in groups]
    return AdamQLR(own, model=model, lr_clip=lr, beta1=betas[0], beta2=betas[1], **knobs)


def relatives(batch_size: int) -> tuple[Arm, ...]:
    """All arms of the table, in its order.

    Args:
        batch_size: sequences that a step's loss is the mean of.
    """
    return (
        ADAMW,
        replace(ADAMW, name="FAdam", make=fadam, knobs={}),
        _sirfshampoo("dense", batch_size),
        _sirfshampoo("diagonal", batch_size),
        replace(ADAMW, name="AdamQLR", make=adamqlr, knobs={}, ratios=(1.0,), start=UNTUNED),
        _published("reference", 6e-3),
        _published("paper", 1e-3),
        DIAGONAL,
        KRONECKER,
        ORTHOGONAL,
        MUON,
        SOAP,
    )


def _sirfshampoo(structure: str, batch_size: int) -> Arm:
    name, knobs = f"SIRFShampoo, {structure}", {"structure": structure, "batch_size": batch_size}
    return Arm(name, sirfshampoo, knobs, momentum="momentum", momenta=BETAS, start=Point(3e-3, 0.9, 4.0))


def _published(mode: str, lr: float) -> Arm:
    """AdaFisher as its paper has it, in print or in code."""
    return replace(DIAGONAL, name=f"AdaFisherW, {mode}", knobs={"mode": mode}, start=Point(lr, 0.9, 1.0))
