"""Parameter groups: what torch's optimizers take for them and more, and what they may hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..ranks import check_placement
from .adafisher import AdaFisherConfig
from .knobs import checked, shown

GROUP_KNOBS = ("beta", "beta2", "damping")  # options that a parameter group may have for itself


def listed(params: Iterable | nn.Module) -> Sequence:
    """Tensors, named tensors, groups or a whole model, as torch's optimizers take them.

    Raises:
        ValueError: nothing in it is trainable.
    """
    if isinstance(params, nn.Module):
        params = [item for item in params.named_parameters() if item[1].requires_grad]
    given = [{**item, "params": as_list(item["params"])} if isinstance(item, dict) else item for item in list(params)]
    nested = [item["params"] if isinstance(item, dict) else [item] for item in given]
    tensors = [item[1] if isinstance(item, tuple) else item for inner in nested for item in inner]
    if not any(tensor.requires_grad for tensor in tensors):
        raise ValueError("the model has nothing trainable: every parameter is frozen (requires_grad=False)")
    return given


def check_group(group: dict[str, Any]) -> None:
    """Checks the numbers of a parameter group and its parameters.

    Raises:
        ValueError: a number out of range, a complex parameter, or one that is split as FSDP2 does not.
        TypeError: what must be a number is none.
    """
    check_numbers(group)
    check_parameters(group["params"])


def check_parameters(params: Iterable[Tensor]) -> None:
    """Refuses complex parameters, and those that are split as FSDP2 does not.

    Raises:
        ValueError: it says which.
    """
    for param in params:
        check_placement(f"a parameter of shape {tuple(param.shape)}", param)
        if param.is_complex():
            raise ValueError(f"complex parameters are not supported: one has dtype {param.dtype}")


def check_rates(group: Mapping[str, Any], more: Iterable[str] = ()) -> None:
    """Checks the learning rate and the weight decay of a group, and that ``more`` of its keys are numbers.

    Raises:
        ValueError: negative, or not finite.
        TypeError: no number.
    """
    for key in ("lr", "weight_decay", *more):
        if not isinstance(group[key], int | float | Tensor) or isinstance(group[key], bool):
            raise TypeError(f"{key} must be a number, not {shown(group[key])}")
    for key in ("lr", "weight_decay"):
        if not 0 <= _number(group[key]) < math.inf:
            raise ValueError(f"{key} must be at least 0, not {shown(group[key])}, and finite")


def check_numbers(group: Mapping[str, Any]) -> None:
    """Checks the numbers of a parameter group of AdaFisher.

    Raises:
        ValueError: a number out of range.
        TypeError: what must be a number is none.
    """
    check_rates(group, GROUP_KNOBS)
    AdaFisherConfig(**{name: group[name] for name in GROUP_KNOBS})
    if "momentum" in group:
        _momentum(group)


def follow_momentum(groups: Iterable[dict[str, Any]]) -> None:
    """Makes β what a schedule has set: OneCycleLR and CyclicLR write into ``momentum``, which only they do.

    Raises:
        ValueError, TypeError: no β can have this value.
    """
    for group in groups:
        if "momentum" in group:
            group["beta"] = _momentum(group)


def _momentum(group: Mapping[str, Any]) -> float:
    try:
        return checked(AdaFisherConfig, "beta", group["momentum"])
    except (TypeError, ValueError) as error:
        raise type(error)(f"momentum, which a schedule of β sets: {error}") from None


def _number(value: float | Tensor) -> float:
    """nan for what is no single number, or too large for one."""
    try:
        return float(value)
    except (OverflowError, RuntimeError):
        return math.nan


def as_list(params: Any) -> list:
    """The ``params`` of a group, also where they are a single one."""
    return [params] if isinstance(params, Tensor) else list(params)
