"""Mixture-of-experts layers that keep all experts in one tensor: every expert has a block of its own.

transformers dispatches their forward pass through a registry of implementations; the statistics are taken by the one
that ``model.set_experts_implementation("adafisher")`` chooses, see ``statistics.experts``. With another implementation
their parameters are stacks of matrices that use their gradients.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..compat import experts_implementation
from .base import LayerKind, Layout

IMPLEMENTATION = "adafisher"  # in transformers' registry
PARTS = {"gate_up_proj": "up", "up_proj": "up", "down_proj": "down"}  # parameters of the two linear maps

PARTS_OF_OLD = {"gate": "gate_up_proj", "bias": "down_proj_bias", "post_expert_norm": "post_expert_norm"}


def has(module: Any, what: str) -> bool:
    """Whether the experts have a gate, biases or a norm; transformers 5.2 says so only by having them."""
    return bool(getattr(module, f"has_{what}", hasattr(module, PARTS_OF_OLD[what])))


class ExpertsKind(LayerKind):
    name = "experts"

    def matches(self, module: nn.Module) -> bool:
        chosen = experts_implementation(module)
        return chosen == IMPLEMENTATION and hasattr(module, "is_transposed") and hasattr(module, "down_proj")

    def part(self, attribute: str) -> str | None:
        return PARTS.get(attribute.removesuffix("_bias"))

    def layout(self, module: Any, attribute: str) -> Layout | None:
        if self.part(attribute) is None:
            return None
        parameter = getattr(module, attribute)
        if attribute.endswith("_bias"):
            weight = getattr(module, attribute.removesuffix("_bias"))
            inputs = weight.shape[1 if module.is_transposed else 2]
            return Layout((*parameter.shape, 1), col="unit", independent=True, bias_input=inputs)
        inputs = parameter.shape[1 if module.is_transposed else 2]
        row, col = ("input", "output") if module.is_transposed else ("output", "input")
        augmented = inputs if has(module, "bias") else 0
        return Layout(tuple(parameter.shape), row, col, independent=True, bias_input=augmented)  # type: ignore[arg-type]
