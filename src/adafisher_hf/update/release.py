"""gradient_release: every parameter takes its step in the backward pass, and its gradient is let go at once.

No two gradients need to be there at a time (Lv et al. 2023, LOMO). What a step asks of all of them, the floor of σ, is
taken from the step before.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..ranks import is_distributed
from ..statistics.hooks import Hook
from .collect import collect
from .scalars import floor_of, grad_square


class Release:
    """The hooks, and what is known of the step that goes on. It does not keep the optimizer alive.

    Args:
        optimizer: whose parameters step.

    Raises:
        ValueError: there are ranks, which exchange gradients later than this.
    """

    def __init__(self, optimizer: Any):
        if is_distributed(optimizer.ranks):
            raise ValueError(
                "gradient_release takes the step before ranks could exchange their gradients: train in one process, or "
                "leave it out"
            )
        self._optimizer = weakref.ref(optimizer)
        self._floor = torch.zeros(())
        self._begin()

    @property
    def begun(self) -> bool:
        """Whether a parameter has taken the step already."""
        return bool(self._stepped)

    def attach(self, params: Iterable[Tensor]) -> list[Any]:
        """Steps these when their gradients are complete. Returns the handles of the hooks."""
        hook = Hook(self._take_step)
        return [param.register_post_accumulate_grad_hook(hook) for param in params]

    def end_step(self) -> None:
        """All parameters have taken the step."""
        self._floor = floor_of(self._totals, self._numbers)
        self._begin()
        optimizer = self._optimizer()
        assert optimizer is not None  # which calls this
        optimizer._statistics.end_step()

    def _begin(self) -> None:
        self._stepped: set[int] = set()
        self._totals: list[Tensor] = []
        self._numbers = 0

    @torch.no_grad()
    def _take_step(self, param: Tensor) -> None:
        optimizer = self._optimizer()
        if optimizer is None:
            return
        if id(param) in self._stepped:
            raise ValueError(
                "gradient_release takes the step in the backward pass: call step() after each one (no accumulation), "
                "or leave it out"
            )
        if not self.begun:
            self._blocks = optimizer._begin_step()
        self._stepped.add(id(param))
        if optimizer._statistics.gate.active and not optimizer._statistics.closed:
            optimizer._take_in(self._blocks, [(param, param.grad)])
        own = [{**group, "params": [p for p in group["params"] if p is param]} for group in optimizer.param_groups]
        collected = collect(own, self._blocks, optimizer.state, optimizer._directions)
        optimizer._move(collected, self._floor)
        self._totals += [grad_square(batch) for batch in collected.batches.values()]
        self._numbers += sum(sum(batch.sizes) for batch in collected.batches.values())
        param.grad = None
