"""What the optimizer will store for a model, counted without storing it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .optimizer import AdaFisherW


def state_bytes(model: nn.Module, **knobs: Any) -> dict[str, int]:
    """Bytes of optimizer state for each trainable parameter, by name.

    The state is made as in the first step, so nothing can be forgotten; with the model on the meta device it costs
    no memory.

    Args:
        model: the model, best on the meta device.
        knobs: the fields of AdaFisherConfig.
    """
    optimizer = AdaFisherW(model, **knobs)
    optimizer._init_missing_state(optimizer._blocks.by_parameter())
    optimizer.close()
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: sum(_bytes(value) for value in state.values()) for parameter, state in optimizer.state.items()
    }


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
