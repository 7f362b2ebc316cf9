"""Ranks that run out of batches before the others: ``with Join([ddp_model, optimizer])``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.join import Joinable, JoinHook


class JoinsUnevenly(Joinable):
    """What ``torch.distributed.algorithms.join.Join`` needs of an optimizer that adds up statistics in ``step()``.

    Attributes:
        ranks: that train together; None: all.
    """

    param_groups: list[dict[str, Any]]
    ranks: dist.ProcessGroup | None = None
    _join_config: Any = None  # Join sets it

    def __init__(self) -> None:  # Optimizer's comes first and calls no other
        raise NotImplementedError

    @abstractmethod
    def skip_step(self) -> None:
        """Takes part in a step of the others, without data."""

    @abstractmethod
    def shared_tensors(self) -> Iterable[Tensor]:
        """All tensors of the state, in one order on all ranks; they will be written to."""

    @abstractmethod
    def state_was_written(self) -> None:
        """The tensors have new values."""

    def join_hook(self, **kwargs: Any) -> JoinHook:
        """Takes part in the all-reduces of the others' steps, and takes over their state in the end."""
        return _Shadow(self)

    @property
    def joins(self) -> bool:
        """Whether a Join is on: ranks may be without data."""
        return bool(getattr(self._join_config, "enable", False))

    @property
    def join_device(self) -> torch.device:
        return self.param_groups[0]["params"][0].device

    @property
    def join_process_group(self) -> Any:
        return self.ranks or dist.group.WORLD


class _Shadow(JoinHook):
    def __init__(self, optimizer: JoinsUnevenly):
        self.optimizer = optimizer

    def main_hook(self) -> None:
        """One step of the ranks that still have data, to which this one adds nothing."""
        self.optimizer.skip_step()

    @torch.no_grad()
    def post_hook(self, is_last_joiner: bool) -> None:
        """The state of a rank that had data to the end; DDP does the same with the weights."""
        group, rank = self.optimizer.join_process_group, dist.get_rank()
        source = torch.tensor(rank if is_last_joiner else -1, device=self.optimizer.join_device)
        dist.all_reduce(source, op=dist.ReduceOp.MAX, group=group)
        for tensor in self.optimizer.shared_tensors():
            dist.broadcast(tensor, src=int(source), group=group)
        self.optimizer.state_was_written()
        self.optimizer._join_config = None  # torch leaves it on
