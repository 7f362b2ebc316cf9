"""Ranks that run out of batches before the others: ``with Join([ddp_model, optimizer])``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.join import Joinable, JoinHook

if TYPE_CHECKING:
    from .optimizer import AdaFisher


class JoinsUnevenly(Joinable):
    """What ``torch.distributed.algorithms.join.Join`` needs of an optimizer that adds up statistics in ``step()``."""

    _join_config: Any = None  # Join sets it

    def __init__(self) -> None:  # Optimizer's comes first and calls no other
        raise NotImplementedError

    def join_hook(self, **kwargs: Any) -> JoinHook:
        """Takes part in the all-reduces of the others' steps, and takes over their state in the end."""
        return _Shadow(self)  # type: ignore[arg-type]

    @property
    def join_device(self) -> torch.device:
        return self.param_groups[0]["params"][0].device  # type: ignore[attr-defined]

    @property
    def join_process_group(self) -> Any:
        return self._blocks.ranks or dist.group.WORLD  # type: ignore[attr-defined]


class _Shadow(JoinHook):
    def __init__(self, optimizer: AdaFisher):
        self.optimizer = optimizer

    def main_hook(self) -> None:
        """One step of the ranks that still have data, to which this one adds nothing."""
        self.optimizer._skip_step()

    @torch.no_grad()
    def post_hook(self, is_last_joiner: bool) -> None:
        """The state of a rank that had data to the end; DDP does the same with the weights."""
        group, ranks = self.optimizer.join_process_group, dist.get_rank()
        source = torch.tensor(ranks if is_last_joiner else -1, device=self.optimizer.join_device)
        dist.all_reduce(source, op=dist.ReduceOp.MAX, group=group)
        for tensor in _tensors(self.optimizer):
            dist.broadcast(tensor, src=int(source), group=group)
        self.optimizer._forget_divisors()


def _tensors(optimizer: AdaFisher) -> list[Tensor]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [value for param in params for _, value in sorted(optimizer.state.get(param, {}).items())]
