"""What an optimizer will store for a model, counted without storing it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .coverage import coverage
from .others import OTHERS

SETTINGS = (
    "structure=diagonal",
    "structure=diagonal,state_dtype=bfloat16",
    "structure=diagonal,state_dtype=int8",
    "structure=orthogonal",
    "structure=kronecker",
    "structure=kronecker,state_dtype=bfloat16",
    "structure=kronecker,second_moment=rotated",
)


class Setting(NamedTuple):
    """An optimizer and how it is made.

    Attributes:
        name: of the row.
        cls: a subclass of ``torch.optim.Optimizer``.
        arguments: keywords beside the parameters.
    """

    name: str
    cls: Any
    arguments: dict[str, Any]


class MemoryRow(NamedTuple):
    """The state of one setting: ``optim_args`` of AdaFisherW, or the name of another optimizer.

    ``bytes`` and ``per_parameter`` are None where an optimizer cannot say: it needs the values of a gradient.
    """

    setting: str
    bytes: int | None
    per_parameter: float | None


def state_bytes(optimizer_cls: Any, model: nn.Module, **arguments: Any) -> dict[str, int]:
    """Bytes of optimizer state for each trainable parameter, by name.

    The state is made as in the first step, so nothing can be forgotten; with the model on the meta device it costs
    no memory. An optimizer that has ``init_state()`` is asked for it, any other takes a step with gradients of zero.

    Args:
        optimizer_cls: a subclass of ``torch.optim.Optimizer``.
        model: the model, on the meta device if the optimizer has no ``init_state()``.
        arguments: keywords of the class, beside the parameters.

    Raises:
        ValueError: a step would be needed that changes the model.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in _trainable(model)}
    optimizer = optimizer_cls(list(names), **arguments)
    try:
        _make_state(optimizer, list(names))
    finally:
        getattr(optimizer, "close", lambda: None)()
    return {
        names[parameter]: sum(map(_bytes, _tensors(state)))
        for parameter, state in optimizer.state.items()
        if parameter in names
    }


def compare_settings(model: nn.Module, settings: Iterable[Setting]) -> list[MemoryRow]:
    """The state of each setting, after those of OTHERS, which are counted by formula.

    Args:
        model: on the meta device.
        settings: in the order of the rows.
    """
    trainable, roles = _trainable(model), {row.name: row.role for row in coverage(model)}
    numbers = sum(parameter.numel() for _, parameter in trainable)
    totals: dict[str, int | None] = {
        name: sum(of(parameter, roles[own]) for own, parameter in trainable) for name, of in OTHERS.items()
    }
    for name, cls, arguments in settings:
        totals[name] = _total(cls, model, arguments)
    return [MemoryRow(name, total, None if total is None else total / numbers) for name, total in totals.items()]


def _total(cls: Any, model: nn.Module, arguments: dict[str, Any]) -> int | None:
    try:
        return sum(state_bytes(cls, model, **arguments).values())
    except RuntimeError:  # of torch, where a step asks for a value that the meta device has not
        if hasattr(cls, "init_state"):
            raise
        return None


def _make_state(optimizer: Any, parameters: list[Tensor]) -> None:
    if hasattr(optimizer, "init_state"):
        optimizer.init_state()
        return
    if not all(parameter.is_meta for parameter in parameters):
        raise ValueError(f"{type(optimizer).__name__} makes its state in a step: put the model on the meta device")
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _tensors(state: Any) -> Iterator[Tensor]:
    """Of a state: some optimizers keep lists."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
