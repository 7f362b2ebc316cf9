"""What a preconditioner and a direction are, and the small arithmetic that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..layers import KINDS, Layout
from ..statistics.block import Block, Use, Wanted

State = dict[str, Any]
Need = Literal["element", "row", "matrix", "pair"]
Sides = tuple[str, ...]  # of "row" and "col"


class Length(NamedTuple):
    """How long the update of a block that has a length of its own is; each of shape ().

    Attributes:
        wanted: in units of the learning rate.
        found: of what the direction has made.
        momentum: its RMS.
    """

    wanted: Tensor
    found: Tensor
    momentum: Tensor


class Direction(ABC):
    """What turns the momentum of one parameter into the direction of its step; immutable.

    The parameter is seen as a stack of matrices, (stack, R, C).

    Attributes:
        needs: how much of the momentum one number of the direction depends on: itself, its row, its whole matrix, or
            that of another parameter too. Where a parameter is split over ranks, they gather what is needed.
        shared: it is so dear that ranks which take the same step share the work out.
        own_length: ``lengths`` says how long the update is, not the momentum.
        follows: it is worked out together with the block before it.
    """

    needs: Need = "element"
    shared = False
    own_length = False
    follows = False

    @abstractmethod
    def apply(self, momentum: Tensor, out: Tensor | None = None) -> Tensor:
        """The direction, (stack, R, C), written into ``out`` where one is given."""

    @classmethod
    def apply_all(
        cls,
        directions: Sequence[Direction],
        momenta: Sequence[Tensor],
        out: Sequence[Tensor],
        weights: Sequence[Tensor],
    ) -> None:
        """Applies directions of this class, each to its momentum; for those that can work on many at once.

        Args:
            weights: of the parameters, same views.
        """
        for direction, momentum, quotient in zip(directions, momenta, out, strict=True):
            direction.apply(momentum, out=quotient)

    @classmethod
    def lengths(
        cls,
        directions: Sequence[Direction],
        momenta: Sequence[Tensor],
        out: Sequence[Tensor],
        weights: Sequence[Tensor],
    ) -> list[Length | None]:
        """The lengths of what directions of this class have made; None where the momentum's counts."""
        return [None] * len(directions)

    @abstractmethod
    def dense(self) -> Tensor:
        """What the momentum is divided by, at full size, for inspection: (stack, R, C), in the basis where it is so."""

    @abstractmethod
    def sample(self, size: int) -> Tensor:
        """``dense()`` at about so many rows and columns, evenly spread: for logs of large parameters."""

    @abstractmethod
    def matrices(self, chosen: slice) -> Direction:
        """That of some matrices of the stack."""

    def some_rows(self, start: int, stop: int) -> Direction:
        """That of some rows of the matrices, counted through the stack; only of what needs an element or a row.

        Rows of several matrices become matrices of one row.
        """
        raise NotImplementedError(f"{type(self).__name__} needs the whole {self.needs}")


class Preconditioner(ABC):
    """How raw sums become a direction. It sees one parameter at a time and knows neither modules nor the optimizer.

    Its state lives in ``optimizer.state[p]``, under names that it makes in ``init`` and never adds to: distributed
    checkpoints drop keys that appear later. State tensors are changed in place, and what depends on data is computed
    on the device.

    Attributes:
        reads: ``"taps"``: hooks on the model; ``"gradient"``: gradients alone (``fallback``), no model is needed.
        fallback: whether a parameter without a tap that fired uses its gradient.
        grafted: the direction gives no length: the update gets that of the momentum in units of σ.
        renews: ``renew`` has work to do.
        observes: ``observe`` wants the gradient of every step.
    """

    reads: Literal["taps", "gradient"] = "taps"
    fallback = False
    grafted = True
    renews = False
    observes = False

    @classmethod
    def from_config(cls, config: Any) -> Preconditioner:
        """Makes one with the options of an AdaFisherConfig."""
        return cls()

    @classmethod
    def refuses(cls, config: Any, *, sharded: bool, ranks: int) -> str | None:
        """Why it cannot work on so many ranks, or with parameters that are split over them; None: it can."""
        return None

    def wanted(self) -> Wanted:
        """The statistics that it reads."""
        kinds = KINDS if self.reads == "taps" else ()
        return Wanted(self.sides, kinds=kinds, fallback=self.fallback)

    def measures(self, block: Block) -> bool:
        """Whether it keeps a state for a parameter; one that nobody measures is stepped along its momentum."""
        return bool(block.taps) or self.fallback

    def sides(self, layout: Layout) -> Sides:
        """Which sides of a parameter have a full factor instead of a diagonal one."""
        return ()

    @abstractmethod
    def init(self, state: State, layouts: list[Layout], like: Tensor) -> None:
        """Adds everything that it will ever keep of a parameter to the parameter's state.

        Args:
            layouts: one an owner of the parameter.
            like: an empty tensor with dtype and device of the state.
        """

    @abstractmethod
    def refresh(self, state: State, uses: list[Use], gamma: float) -> Tensor | None:
        """Takes one set of statistics into the state, in place; returns the raw mean(F), for logs, where it has one."""

    @abstractmethod
    def direction(self, state: State, layouts: list[Layout], damping: float) -> Direction:
        """The direction that the state stands for."""

    def advice(self, layouts: Iterable[Layout]) -> str | None:
        """What the user should know before training, of the first layouts of all parameters; None: nothing."""
        return None

    def treatment(self, layout: Layout) -> str:
        """What happens to a parameter, in a few words, for ``coverage``."""
        sides = self.sides(layout)
        if len(sides) != 1:
            return "full factors" if sides else "diagonal"
        _, rows, cols = layout.shape
        shorter = "row" if rows < cols else "col"
        return f"full factor of its {'shorter' if sides[0] == shorter else 'longer'} side"

    def renew(self, states: list[tuple[State, list[Layout]]]) -> None:  # noqa: B027 - most have nothing to do
        """Makes anew what is too dear for every refresh, of the parameters whose turn it is, in place."""

    def observe(self, state: State, layout: Layout, grad: Tensor) -> None:  # noqa: B027 - as above
        """Takes the gradient of a step into the state, in place."""

    def figures(self) -> dict[str, dict[str, float]]:
        """What it has to say in the logs beside the curvature of parameters."""
        return {}


def diagonal_of(factor: Tensor) -> Tensor:
    """(stack, d) of a factor that is dense, (stack, d, d), or diagonal already."""
    return factor.diagonal(dim1=-2, dim2=-1) if factor.dim() == 3 else factor


def ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0 or has too few digits to divide by."""
    return torch.where(b >= torch.finfo(b.dtype).tiny, a / b, 0.0)


def is_normal(x: Tensor) -> Tensor:
    """Whether a positive number is neither 0, nor subnormal, nor infinite, nor NaN."""
    limits = torch.finfo(x.dtype)
    return (x >= limits.tiny) & (x <= limits.max)
