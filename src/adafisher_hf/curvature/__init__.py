"""Curvature: from module hooks to the divisor of the momentum. Nothing here knows the optimizer or the Trainer."""

from .blocks import Block, Blocks
from .coverage import CoverageRow, coverage, summarize
from .modes import MODES

__all__ = ["MODES", "Block", "Blocks", "CoverageRow", "coverage", "summarize"]
