"""Curvature: from module hooks to the divisor of the momentum. Nothing here knows the optimizer or the Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .blocks import Block, Blocks
from .coverage import CoverageRow, coverage, summarize
from .kronecker import Kronecker
from .modes import Calibrated, Mode, Paper, Reference

if TYPE_CHECKING:
    from ..config import AdaFisherConfig


def make_mode(config: AdaFisherConfig) -> Mode:
    """The mode and structure that a config asks for."""
    if config.structure == "kronecker":
        rotated = config.second_moment == "rotated"
        return Kronecker(config.max_factor_dim, rotated, config.beta2)
    return {"calibrated": Calibrated, "paper": Paper, "reference": Reference}[config.mode]()


__all__ = ["Block", "Blocks", "CoverageRow", "Mode", "coverage", "make_mode", "summarize"]
