"""What the optimizer will store for a model, counted without storing it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from .config import AdaFisherConfig
from .optimizer import AdaFisherW

SETTINGS = (
    "structure=diagonal",
    "structure=diagonal,state_dtype=bfloat16",
    "structure=kronecker",
    "structure=kronecker,state_dtype=bfloat16",
    "structure=kronecker,second_moment=rotated",
)


def state_bytes(model: nn.Module, **knobs: Any) -> dict[str, int]:
    """Bytes of optimizer state for each trainable parameter, by name.

    The state is made as in the first step, so nothing can be forgotten; with the model on the meta device it costs
    no memory.

    Args:
        model: the model, best on the meta device.
        knobs: the fields of AdaFisherConfig.
    """
    optimizer = AdaFisherW(model, **knobs)
    optimizer._init_missing_state(optimizer._by_parameter())
    optimizer.close()
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: sum(_bytes(value) for value in state.values()) for parameter, state in optimizer.state.items()
    }


class MemoryRow(NamedTuple):
    """The state of one setting: ``optim_args`` of AdaFisherW, or AdamW."""

    setting: str
    bytes: int
    per_parameter: float


def compare_settings(model: nn.Module, settings: Iterable[str] = SETTINGS) -> list[MemoryRow]:
    """Settings of AdaFisherW, as ``optim_args``, after AdamW (two buffers of the parameter's dtype)."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    numbers = sum(parameter.numel() for parameter in trainable)
    totals = {"AdamW": sum(2 * _bytes(parameter) for parameter in trainable)}
    for setting in settings:
        knobs = AdaFisherConfig.from_optim_args(setting).to_dict()
        totals[setting] = sum(state_bytes(model, **knobs).values())
    return [MemoryRow(name, total, total / numbers) for name, total in totals.items()]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
