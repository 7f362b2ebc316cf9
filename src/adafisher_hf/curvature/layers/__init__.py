"""The registry of layer kinds. Adding one: a small class in this folder and its line in KINDS."""

from __future__ import annotations

from torch import nn

from .base import LayerKind, Layout, OneHot, Rows, gradient_layout
from .conv import ConvKind
from .embedding import EmbeddingKind
from .linear import Conv1DKind, LinearKind
from .norm import BatchNormKind, GroupNormKind, LayerNormKind, RMSNormKind

KINDS: tuple[LayerKind, ...] = (
    LinearKind(),
    Conv1DKind(),
    EmbeddingKind(),
    ConvKind(),
    LayerNormKind(),
    BatchNormKind(),
    GroupNormKind(),
    RMSNormKind(),
)


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind that captures this module's curvature, or None."""
    return next((kind for kind in KINDS if kind.matches(module)), None)


__all__ = ["KINDS", "LayerKind", "Layout", "OneHot", "Rows", "gradient_layout", "kind_of"]
