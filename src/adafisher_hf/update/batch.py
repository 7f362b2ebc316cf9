"""What a kernel gets: lists of tensors, one entry a block, and the numbers of their parameter group."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from ..compat import foreach_norm
from ..preconditioners.base import Direction
from ..ranks import local
from . import blockwise
from .shards import Shard
from .turns import Turn

LR_MULTIPLE = "lr_multiple"  # in the state of a parameter that has another learning rate than its group
BUCKET_NUMBERS = 1 << 22  # numbers a bucket: bounds the temporary memory (one larger tensor is a bucket of its own)


@dataclass(frozen=True)
class Hyper:
    """The numbers of a parameter group.

    Attributes:
        lr: learning rate α.
        beta: decay of the momentum.
        beta2: decay of σ².
        weight_decay: κ.
        decoupled: AdaFisherW's weight decay; otherwise it is added to the gradient.
        grafted: scale by σ and graft to the momentum's norm; otherwise divide only.
        nesterov: β m + (1 - β) g in place of m.
    """

    lr: float | Tensor
    beta: float
    beta2: float
    weight_decay: float
    decoupled: bool
    grafted: bool
    nesterov: bool = False


@dataclass(frozen=True)
class Key:
    """What the blocks of a batch have in common.

    Attributes:
        group: index of the parameter group.
        device: of parameters and state.
        dtype: of the state's scalars.
        ranks: those that hold the other rows of these parameters; None where all rows are here.
    """

    group: int
    device: torch.device
    dtype: torch.dtype
    ranks: dist.ProcessGroup | None


@dataclass
class Batch:
    """Blocks of one parameter group that share device and state dtype. Every list has one entry a block.

    Where parameters are split over ranks the tensors are this rank's rows, and all scalars are about the whole block.

    Attributes:
        params: the weights, viewed as (stack, rows, cols); updated in place.
        grads: their gradients, same view.
        exp_avgs: momentum, same view, in the state's dtype or in bfloat16, or its codes; updated in place.
        scales: of the codes, same view with a column a block; None where the momentum is no code; updated in place.
        steps: number of gradients seen, shape (); updated in place.
        sigma_sqs: EMA of mean(g²), shape (); updated in place. Empty where the update is not grafted.
        directions: of each block.
        gathers: how the ranks bring the direction together, where none of them makes it alone; None elsewhere.
        compensations: what the rounding of half-precision weights has cut off, same view; None where that is dropped.
        grad_sqs: Σ g² of each block, shape (); a block where it is not finite is left alone.
        sizes: how many numbers each block has.
        lr_multiples: of the group's learning rate, shape ().
    """

    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    scales: list[Tensor | None] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    sigma_sqs: list[Tensor] = field(default_factory=list)
    directions: list[Direction] = field(default_factory=list)
    gathers: list[Shard | Turn | None] = field(default_factory=list)
    compensations: list[Tensor | None] = field(default_factory=list)
    grad_sqs: list[Tensor] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    lr_multiples: list[Tensor] = field(default_factory=list)

    def add(
        self,
        param: Tensor,
        state: dict[str, Tensor],
        shard: Shard,
        direction: list[Direction],
        copies: dist.ProcessGroup | None = None,
    ) -> Tensor:
        """Adds the blocks of one parameter that has a gradient; returns the weights that the kernel will update.

        Args:
            copies: the ranks that take the same step, where there are several.
        """
        assert param.grad is not None
        weights = local(param.detach()).reshape(-1)
        grads = shard.views(local(param.grad))
        compensation, scale = state.get("compensation"), state.get(blockwise.SCALE)
        self.params += shard.views(weights)
        self.grads += grads
        self.exp_avgs += shard.views(local(state["exp_avg"]))
        self.scales += [None] * len(grads) if scale is None else _scale_views(shard, param, scale)
        self.steps += state["step"].unbind()
        self.sigma_sqs += state["sigma_sq"].unbind() if "sigma_sq" in state else []
        self.directions += direction
        self.gathers += [_gather_of(shard, some, copies) for some in direction]
        self.compensations += [None] * len(grads) if compensation is None else shard.views(local(compensation))
        self.grad_sqs += [norm.square() for norm in foreach_norm(grads, 2, state["step"].dtype)]
        self.sizes += shard.sizes()
        self.lr_multiples += [state[LR_MULTIPLE] if LR_MULTIPLE in state else state["step"].new_ones(())] * len(grads)
        return weights

    def buckets(self, ranks: int = 1) -> Iterator[slice]:
        """Which blocks are updated together: the same on every rank, for each bucket may be a message.

        Args:
            ranks: over which the parameters are split.
        """
        start, numbers, turns = 0, 0, 0
        for i, (size, gather) in enumerate(zip(self.sizes, self.gathers, strict=True)):
            # What is gathered is here as a whole; those who take turns need a turn each.
            held = -(-size // ranks) if gather is None else size // gather.shared_by
            in_turn = gather is not None and turns % gather.shared_by != 0  # some rank would have nothing to do
            full = numbers + held > BUCKET_NUMBERS and not in_turn
            if i > start and full and not self.directions[i].follows:
                yield slice(start, i)
                start, numbers, turns = i, 0, 0
            numbers += held
            turns += int(isinstance(gather, Turn))
        if self.params:
            yield slice(start, len(self.params))

    def __getitem__(self, bucket: slice) -> Batch:
        return Batch(**{field.name: getattr(self, field.name)[bucket] for field in dataclasses.fields(self)})

    def decoded(self, dtype: torch.dtype) -> Batch:
        """The same with every momentum as numbers; where it was in codes, as a copy of this dtype."""
        if all(scale is None for scale in self.scales):
            return self
        pairs = zip(self.exp_avgs, self.scales, strict=True)
        numbers = [codes if scale is None else blockwise.read(codes, scale, dtype) for codes, scale in pairs]
        return dataclasses.replace(self, exp_avgs=numbers)

    def encode(self, numbers: list[Tensor], taken: Tensor) -> None:
        """Writes momenta back where they are in codes.

        Args:
            numbers: one a block.
            taken: which blocks take this step, shape (blocks,); the others' codes stay as they are.
        """
        for momentum, codes, scale, ok in zip(numbers, self.exp_avgs, self.scales, taken.unbind(), strict=True):
            if scale is not None:
                blockwise.write(momentum, codes, scale, ok)


def _scale_views(shard: Shard, param: Tensor, scale: Tensor) -> list[Tensor]:
    return shard.narrowed(param.numel() // scale.numel()).views(local(scale))


def _gather_of(shard: Shard, direction: Direction, copies: dist.ProcessGroup | None) -> Shard | Turn | None:
    if shard.has_to_gather(direction):
        return shard
    return Turn(copies) if copies is not None and direction.shared and shard.ranks is None else None
