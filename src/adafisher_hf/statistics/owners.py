"""Which modules hold a parameter, and what each of them does with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import nn

from ..compat import is_param_wrapper, parameters_of
from ..layers import KINDS, LayerKind, Layout


class Owner(NamedTuple):
    """One module that holds a parameter directly, and how it uses it (kind and layout None: nobody knows)."""

    module_name: str
    module: nn.Module
    attribute: str
    kind: LayerKind | None
    layout: Layout | None

    @property
    def parameter_name(self) -> str:
        return f"{self.module_name}.{self.attribute}" if self.module_name else self.attribute


def find_owners(model: nn.Module, kinds: Iterable[LayerKind] = KINDS) -> dict[int, list[Owner]]:
    """The owners of every parameter, by ``id(parameter)``; a tied weight has several."""
    owners: dict[int, list[Owner]] = {}
    silent = _silent(model)
    for module_name, module in model.named_modules():
        known = () if id(module) in silent else kinds  # the A and B of a single parameter never run
        kind = next((kind for kind in known if kind.matches(module)), None)
        for attribute, parameter in parameters_of(module).items():
            if parameter is not None:
                layout = kind.layout(module, attribute) if kind else None
                owner = Owner(module_name, module, attribute, kind if layout else None, layout)
                owners.setdefault(id(parameter), []).append(owner)
    return owners


def _silent(model: nn.Module) -> set[int]:
    """The modules, by ``id``, whose weights are read by others, so that their own forward pass never runs."""
    wrappers: list[Any] = [module for module in model.modules() if is_param_wrapper(module)]
    sides = [side for wrapper in wrappers for side in (wrapper.lora_A, wrapper.lora_B)]
    return {id(module) for side in sides if isinstance(side, nn.Module) for module in side.modules()}


def kind_of(owners: Iterable[Owner]) -> str:
    """The kinds of all uses of a parameter, ``gradient`` where none is known."""
    return "+".join(dict.fromkeys(owner.kind.name for owner in owners if owner.kind)) or "gradient"


def refuse_sparse(owners: Iterable[Owner]) -> None:
    """Refuses an embedding whose gradient would be no dense tensor.

    Raises:
        ValueError: it names the embedding.
    """
    for owner in owners:
        if getattr(owner.module, "sparse", False) is True:
            raise ValueError(f"{owner.parameter_name} would get sparse gradients: use nn.Embedding(..., sparse=False)")
