"""What a parameter is for in its model: a hidden matrix, a vocabulary-sided one, or neither."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ..compat import is_transformers_model, is_tuner_layer
from ..layers import Layout, Role, gradient_layout
from ..layers.fused import Fused, fused_parts, looks_fused, output_dim
from .owners import Owner

# In the last part of a module's name, outside of a model's numbered layers: what makes the model's own outputs.
HEADS = (
    "classifier", "head", "qa_outputs", "score", "logits", "class_embed", "objective", "vocab_projector", "embed_out",
)  # fmt: skip
TABLES = ("embed", "table", "token")  # in the names of tables that no kind of layer knows
ROUTERS = ("gate", "router")


class Roles:
    """Tells the role of every parameter of a model.

    Args:
        model: on any device; None: nothing is known but shapes.
        excluded: patterns of parameter names, as in a shell; a hidden matrix that fits one is ``"excluded"``.
    """

    def __init__(self, model: nn.Module | None, excluded: Sequence[str] = ()):
        self._model, self._excluded = model, excluded
        self._heads = set() if model is None else {id(module) for module in _heads(model)}
        self._adapters = set() if model is None else {id(module) for module in _adapters(model)}

    def of(self, parameter: Tensor, layout: Layout, owners: Sequence[Owner]) -> Role:
        """The role of a parameter.

        Args:
            parameter: in its own shape.
            layout: of its first owner.
            owners: all modules that hold it.
        """
        role = self._by_use(parameter, layout, owners)
        names = [owner.parameter_name for owner in owners]
        if role == "hidden" and any(fnmatchcase(name, pattern) for name in names for pattern in self._excluded):
            return "excluded"
        return role

    def layouts(self, parameter: Tensor, owners: Sequence[Owner]) -> list[Layout]:
        """How a parameter lies over each of its known uses, or over its gradient, with its role and its parts.

        Args:
            parameter: in its own shape.
            owners: all modules that hold it.
        """
        found = [owner.layout for owner in owners if owner.layout] or [_unknown_layout(parameter, owners)]
        role, fused = self.of(parameter, found[0], owners), self.fused(owners)
        return [dataclasses.replace(layout, role=role).split_as(fused) for layout in found]

    def unused_patterns(self, owners: Iterable[Sequence[Owner]]) -> list[str]:
        """The patterns that fit no parameter."""
        names = [owner.parameter_name for some in owners for owner in some]
        return [pattern for pattern in self._excluded if not any(fnmatchcase(name, pattern) for name in names)]

    def fused(self, owners: Sequence[Owner]) -> Fused | None:
        """Which matrices lie in a parameter; None: it is one."""
        if self._model is None or not owners:
            return None
        return fused_parts(self._model, owners[0].module_name, owners[0].module, owners[0].attribute)

    def _by_use(self, parameter: Tensor, layout: Layout, owners: Sequence[Owner]) -> Role:
        _, rows, cols = layout.shape
        one_row = min(rows, cols) == 1 or (all(owner.attribute.endswith("bias") for owner in owners) and bool(owners))
        if any(id(owner.module) in self._adapters for owner in owners) and parameter.dim() > 1:
            return "adapter"
        if layout.elementwise or layout.col == "unit" or one_row:
            return "vector"
        if any(self._is_vocabulary(owner) for owner in owners):
            return "vocabulary"
        if any(self._is_router(owner) for owner in owners):
            return "router"
        return "hidden" if _is_matrix(parameter, layout, owners) else "other"

    def _is_vocabulary(self, owner: Owner) -> bool:
        if isinstance(owner.module, nn.Embedding) or id(owner.module) in self._heads:
            return True
        name = owner.parameter_name.rpartition(".weight")[0] or owner.attribute
        return owner.kind is None and any(word in name.rpartition(".")[2].lower() for word in TABLES)

    def _is_router(self, owner: Owner) -> bool:
        """Whether it chooses experts: by its name, and by the experts beside it."""
        path = owner.module_name.split(".")
        if "router" in path or self._model is None:
            return "router" in path
        parents = [".".join(path[:i]) for i, name in enumerate(path) if name in ROUTERS]
        return any(hasattr(self._model.get_submodule(parent), "experts") for parent in parents)


def _unknown_layout(parameter: Tensor, owners: Sequence[Owner]) -> Layout:
    layout = gradient_layout(parameter, owners[0].module if owners else None)
    turned = layout.independent and owners
    return layout.turned_to(output_dim(owners[0].module, owners[0].attribute)) if turned else layout


def _is_matrix(parameter: Tensor, layout: Layout, owners: Sequence[Owner]) -> bool:
    """Whether it is known to be multiplied with: a layer's weight, experts, or the heads of an einsum."""
    if layout.independent or any(owner.kind is not None for owner in owners):
        return True
    names = [owner.attribute for owner in owners]
    if any("weight" in name or looks_fused(owner.module_name, name) for owner, name in zip(owners, names, strict=True)):
        return True
    return sum(length > 1 for length in parameter.shape) > 2


def _heads(model: nn.Module) -> Iterator[nn.Module]:
    """The modules whose outputs are the model's own."""
    inner: Any = next(filter(is_transformers_model, model.modules()), None)
    if inner is None:
        yield from _last_matrix(model)
        return
    head = inner.get_output_embeddings()
    if isinstance(head, nn.Module):
        yield from head.modules()
    known = {id(module) for module in inner.modules()}
    yield from (module for module in _last_matrix(model) if id(module) not in known)  # on top of a backbone
    body = getattr(inner, "base_model", inner)
    within = {id(module) for module in body.modules()}
    sizes = _output_sizes(inner.config)
    for name, module in inner.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() < 2 or is_tuner_layer(module):
            continue
        by_size = id(module) not in within and weight.dim() == 2 and weight.shape[0] in sizes
        if by_size or _has_name_of_head(name):
            yield module


def _has_name_of_head(name: str) -> bool:
    """By its last part, and not within a numbered layer; of a stack of heads the number comes last."""
    path = name.split(".")
    if path[-1].isdigit():
        path.pop()
    numbered = any(part.isdigit() for part in path)
    return not numbered and bool(path) and any(path[-1].endswith(word) for word in HEADS)


def _output_sizes(config: Any) -> set[int]:
    labels = getattr(config, "num_labels", None)
    sizes = {getattr(config, "vocab_size", None), labels, labels + 1 if isinstance(labels, int) else None}
    return {size for size in sizes if isinstance(size, int)}


def _last_matrix(model: nn.Module) -> list[nn.Module]:
    """The last module with a matrix, in the order of the definitions: of a model of unknown making its head."""
    weights = [(module, getattr(module, "weight", None)) for module in model.modules()]
    return [module for module, weight in weights if isinstance(weight, Tensor) and weight.dim() > 1][-1:]


def _adapters(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that peft has put beside those that they adapt."""
    for tuner in filter(is_tuner_layer, model.modules()):
        adapted = getattr(tuner, "base_layer", None)
        inside = set() if adapted is None else {id(module) for module in adapted.modules()}
        yield from (module for module in tuner.modules() if module is not tuner and id(module) not in inside)
