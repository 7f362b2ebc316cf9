"""The registry of layer kinds. Adding one: a small class in this folder and its line in KINDS."""

from __future__ import annotations

from .base import LayerKind, Layout, OneHot, Role, Tokens, accumulation_dtype, gradient_layout
from .conv import ConvKind
from .embedding import EmbeddingKind
from .experts import ExpertsKind
from .linear import Conv1DKind, LinearKind
from .norm import BatchNormKind, GroupNormKind, LayerNormKind, RMSNormKind

KINDS: tuple[LayerKind, ...] = (
    LinearKind(),
    Conv1DKind(),
    EmbeddingKind(),
    ConvKind(),
    ExpertsKind(),
    LayerNormKind(),
    BatchNormKind(),
    GroupNormKind(),
    RMSNormKind(),
)


__all__ = ["KINDS", "LayerKind", "Layout", "OneHot", "Role", "Tokens", "accumulation_dtype", "gradient_layout"]
