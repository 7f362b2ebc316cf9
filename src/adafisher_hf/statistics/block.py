"""One parameter with those who measure it, and what a preconditioner wants to have measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from ..layers import KINDS, LayerKind, Layout, Role, accumulation_dtype
from ..ranks import is_sharded, whole
from .gradient import gradient_sums
from .owners import Owner, kind_of
from .sums import Sums
from .tap import Tap


class Use(NamedTuple):
    """The sums of one owner of a parameter since the last refresh, and how the parameter lies over them."""

    sums: Sums | None
    layout: Layout


@dataclass(frozen=True)
class Wanted:
    """Which statistics a preconditioner reads.

    Attributes:
        sides: which of ``"row"`` and ``"col"`` of a layout have a full factor instead of a diagonal one.
        kinds: of layers that are understood; none: everything is made of gradients, and no model is needed.
        tap: what watches a module of these kinds.
        fallback: whether a parameter without a tap that fired uses its gradient.
        additive: whether the sums of several ranks can be added up.
    """

    sides: Callable[[Layout], tuple[str, ...]]
    kinds: tuple[LayerKind, ...] = KINDS
    tap: type[Tap] = Tap
    fallback: bool = True
    additive: bool = True


@dataclass
class Block:
    """One parameter and those who measure it.

    Attributes:
        owners: all modules that hold the parameter; the first one gives its name.
        taps: the taps of those owners whose use is known, in the order of ``layouts``.
        layouts: one a tap; a single gradient layout where there is no tap.
        parameter: the optimizer's, which FSDP2 exchanges.
        name: of the parameter in its model.
        side: ``"a"`` or ``"b"`` of a factor of an adapter; None: no pair.
        partner: the other factor's block.
    """

    owners: list[Owner]
    taps: list[Tap]
    layouts: list[Layout]
    parameter: Tensor
    name: str
    side: Literal["a", "b"] | None = None
    partner: Block | None = field(default=None, repr=False)

    @property
    def kind(self) -> str:
        return kind_of(self.owners)

    @property
    def role(self) -> Role:
        return self.layouts[0].role

    def has_gradient(self) -> bool:
        """Whether the last backward passes have left a gradient, in the optimizer's parameter or in the module's."""
        return any(is_gradient(holder.grad) for holder in (self.parameter, self._in_module()))

    def is_current(self) -> bool:
        """Whether the module still holds the optimizer's parameter (FSDP2: or the one that it was gathered into)."""
        return is_sharded(self.parameter) or self._in_module() is self.parameter

    def _in_module(self) -> Tensor:
        return getattr(self.owners[0].module, self.owners[0].attribute) if self.owners else self.parameter

    def uses(self, grad: Tensor, wanted: Wanted) -> list[Use]:
        """What came in since the last refresh; from the gradient where no tap saw the backward pass."""
        uses = [Use(tap.sums, layout) for tap, layout in zip(self.taps, self.layouts, strict=False)]
        if any(use.sums is not None for use in uses):
            return uses
        if not wanted.fallback:
            return []
        layout, dtype = self.layouts[0], accumulation_dtype(grad.dtype)
        grad = whole(grad).to(dtype).reshape(layout.shape)
        return [Use(gradient_sums(grad, layout, wanted.sides(layout)), layout)]


def is_gradient(grad: Tensor | None) -> bool:
    """Whether there is one that was not zeroed. A look at the values is free on the CPU only; elsewhere zeros count."""
    if grad is None or is_sharded(grad) or grad.device.type != "cpu":
        return grad is not None
    return bool(grad.any())
