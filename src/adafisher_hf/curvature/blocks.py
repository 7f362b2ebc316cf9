"""The Fisher blocks of a model: which modules own each parameter, and what they have seen since the last refresh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..kernels.divisor import Divisor
from ..sharding import has_unreduced_gradients, is_sharded, whole
from .capture import Gate, Tap
from .experts import TAPS, ExpertTap
from .layers import KINDS, LayerKind, Layout, gradient_layout, wide
from .modes import Mode, Use, gradient_sums
from .padding import Padding
from .published import PUBLISHED_KINDS, PublishedTap
from .reduce import is_distributed, reduce_over_ranks


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
    for module_name, module in model.named_modules():
        kind = next((kind for kind in kinds if kind.matches(module)), None)
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                layout = kind.layout(module, attribute) if kind else None
                owner = Owner(module_name, module, attribute, kind if layout else None, layout)
                owners.setdefault(id(parameter), []).append(owner)
    return owners


@dataclass
class Block:
    """The curvature of one parameter.

    Attributes:
        owners: all modules that hold the parameter; the first one gives its name.
        taps: the taps of those owners whose use is known, in the order of ``layouts``.
        layouts: one a tap; a single gradient layout where there is no tap.
        parameter: the optimizer's, which FSDP2 exchanges.
        divisor: of the momentum, until the curvature changes.
        divisors: its part for the rows that are here.
        damping: that the divisor was made with.
        raw_mean: mean(F) of the last refresh, before it is normalised: for the logs only.
    """

    owners: list[Owner]
    taps: list[Tap]
    layouts: list[Layout]
    parameter: Tensor
    divisor: Divisor | None = None
    divisors: list[Divisor] | None = None
    damping: float | None = None
    raw_mean: Tensor | None = None

    @property
    def name(self) -> str:
        return self.owners[0].parameter_name

    @property
    def kind(self) -> str:
        return "+".join(dict.fromkeys(owner.kind.name for owner in self.owners if owner.kind)) or "gradient"

    def has_gradient(self) -> bool:
        """Whether the last backward passes have left a gradient, in the optimizer's parameter or in the module's."""
        return self.parameter.grad is not None or self._in_module().grad is not None

    def is_current(self) -> bool:
        """Whether the module still holds the optimizer's parameter (FSDP2: or the one that it was gathered into)."""
        return is_sharded(self.parameter) or self._in_module() is self.parameter

    def _in_module(self) -> Tensor:
        return getattr(self.owners[0].module, self.owners[0].attribute)

    def uses(self, grad: Tensor, mode: Mode) -> list[Use]:
        """What came in since the last refresh; from the gradient where no tap saw the backward pass."""
        uses = [Use(tap.sums, layout) for tap, layout in zip(self.taps, self.layouts, strict=False)]
        if any(use.sums is not None for use in uses):
            return uses
        if not mode.uses_gradient:
            return []
        layout, dtype = self.layouts[0], torch.promote_types(grad.dtype, torch.float32)
        grad = whole(grad).to(dtype).reshape(layout.shape)
        return [Use(gradient_sums(grad, layout, mode.dense_sides(layout)), layout)]


@dataclass
class Blocks:
    """All blocks of a model, and the hooks that feed them.

    Attributes:
        model: whose modules get hooks.
        mode: how sums become a divisor.
        published: take the statistics as the published code does.
        ranks: the processes whose statistics are added up; None: all.
        handles: of all hooks.
    """

    model: nn.Module
    mode: Mode
    published: bool = False
    ranks: dist.ProcessGroup | None = None
    handles: list = field(default_factory=list)

    def __post_init__(self) -> None:
        _drop_retired(self.model)
        padding = Padding(self.model)
        self.handles.append(padding.handle)
        self.gate = Gate(padding)
        self._taps: dict[int | tuple[int, str], Tap] = {}
        self._blocks: list[Block] = []
        self.handles.append(
            self.model.register_forward_pre_hook(partial(_begin_forward, self._blocks, self._taps, self.gate))
        )

    def add(self, parameters: Iterable[Tensor]) -> None:
        """Makes a block for each parameter and hooks the modules that own them.

        Raises:
            ValueError: a parameter that the model does not own, or an embedding with sparse gradients.
        """
        owners = find_owners(self.model, PUBLISHED_KINDS if self.published else KINDS)
        parameters = list(parameters)
        for parameter in parameters:
            if id(parameter) not in owners:
                raise ValueError(
                    f"a parameter of shape {tuple(parameter.shape)} does not belong to the given "
                    f"{type(self.model).__name__}: pass the model whose parameters are optimized"
                )
            _refuse_sparse(owners[id(parameter)])
        self._blocks += [self._block(owners[id(parameter)], parameter) for parameter in parameters]

    def bind(self, parameters: list[Tensor]) -> dict[int, Block]:
        """The blocks by ``id`` of their parameter.

        Args:
            parameters: those that ``add`` got, or what FSDP2 has put in their places.
        """
        for block, parameter in zip(self._blocks, parameters, strict=True):
            block.parameter = parameter
        return {id(block.parameter): block for block in self._blocks}

    def reduce(self) -> None:
        """Adds up what the taps of all ranks have seen, where there are several ranks.

        Raises:
            ValueError: the published statistics, which do not add up.
        """
        if not is_distributed(self.ranks) or not self._taps:
            return
        if self.published:
            raise ValueError("mode='reference' is the published arithmetic of one process: use mode='calibrated'")
        parameters = [block.parameter for block in self._blocks]
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
        reduce_over_ranks(list(self._taps.values()), dtype, parameters[0].device, self.ranks)

    def bypassed_head(self) -> str | None:
        """The name of a language model's head that got a gradient although its forward did not run."""
        model: Any = self.model
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        tap = self._taps.get(id(head))
        weight = getattr(head, "weight", None)
        if tap is None or tap.sums is not None or not self.fired() or weight is None or weight.grad is None:
            return None
        return next(name for name, module in self.model.named_modules() if module is head)

    def take_nothing(self) -> None:
        """Drops what the taps have summed up."""
        for tap in self._taps.values():
            tap.take()

    def fired(self) -> bool:
        return any(tap.sums is not None for tap in self._taps.values())

    def __iter__(self) -> Iterator[Block]:
        return iter(self._blocks)

    def _block(self, owners: list[Owner], parameter: Tensor) -> Block:
        known = [owner for owner in owners if owner.kind is not None]
        layouts = [owner.layout for owner in known if owner.layout] or [gradient_layout(parameter, owners[0].module)]
        taps = [self._tap(owner) for owner in known]
        for tap, layout in zip(taps, layouts, strict=False):
            tap.want(layout, {getattr(layout, side) for side in self.mode.dense_sides(layout)})
        return Block(owners, taps, layouts, parameter)

    def _tap(self, owner: Owner) -> Tap:
        assert owner.kind is not None
        part = owner.kind.part(owner.attribute)
        key = id(owner.module) if part is None else (id(owner.module), part)
        tap = self._taps.get(key)
        if tap is None:
            tap = self._make_tap(owner, part)
            tap.dtype = wide(getattr(owner.module, owner.attribute).dtype)
            self._taps[key] = tap
            self.handles.append(tap.attach(owner.module))
        return tap

    def _make_tap(self, owner: Owner, part: str | None) -> Tap:
        assert owner.kind is not None
        arguments = owner.kind, self.gate, self.gate.padding.mask_name(owner.module_name)
        if part is not None:
            return ExpertTap(*arguments, part=part)
        return PublishedTap(*arguments) if self.published else Tap(*arguments)


def _begin_forward(blocks: list[Block], taps: dict[Any, Tap], gate: Gate, module: nn.Module, args: tuple) -> None:
    """Forgets a backward pass whose gradients were thrown away: a loss scaler that overflowed skips ``step()``.

    A forward pass that finds no gradient at all is the first one after ``zero_grad``.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    gate.last_input = None  # the next mask may be another one
    if torch._C._current_graph_task_id() != -1:
        return  # recomputed in the middle of a backward pass
    if not any(block.has_gradient() for block in blocks) and not has_unreduced_gradients(module):
        for tap in taps.values():
            tap.take()


def _drop_retired(model: nn.Module) -> None:
    """Takes off the hooks that a copy of a model has brought along: their taps measure nothing."""
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(getattr(hook, "__self__", None), "retired", False) is True:
                del module._forward_hooks[key]
                module._forward_hooks_with_kwargs.pop(key, None)
        taps = vars(module).get(TAPS, [])
        taps[:] = [tap for tap in taps if not tap.retired]


def _refuse_sparse(owners: list[Owner]) -> None:
    for owner in owners:
        if getattr(owner.module, "sparse", False) is True:
            raise ValueError(f"{owner.parameter_name} would get sparse gradients: use nn.Embedding(..., sparse=False)")
