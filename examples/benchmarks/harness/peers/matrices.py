"""What the optimizers of matrices have in common: momentum for hidden matrices, AdamW for all the rest.

Matrices of one shape are stacked, so that a step is a few batched products. Learning rates carry over from AdamW: an
orthogonal update is scaled to the size of AdamW's, 0.2 · √(longer side), and decays as AdamW's does.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..roles import Views, hidden_matrices

ADAM_SIZE = 0.2  # root mean square of AdamW's update


class MatrixOptimizer(torch.optim.Optimizer):
    """Nesterov momentum for the hidden matrices, turned into a direction by a subclass; AdamW for everything else.

    Args:
        groups: parameter groups, each with its learning rate and weight decay.
        model: tells which weights are hidden matrices.
        momentum: β of the hidden matrices.
        betas: of AdamW.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        model: nn.Module,
        *,
        lr: float,
        momentum: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.95),
    ):
        views = hidden_matrices(model)
        hidden = _only(groups, lambda parameter: id(parameter) in views)
        self._adamw = torch.optim.AdamW(_only(groups, lambda p: id(p) not in views), lr=lr, betas=betas, fused=True)
        super().__init__(hidden, {"lr": lr, "weight_decay": 0.0, "momentum": momentum})
        self._stacks = [stack for group in self.param_groups for stack in _stacks(group, views)]
        # One optimizer to the outside: schedules and checkpoints see the groups and the state of both.
        self.param_groups += self._adamw.param_groups
        self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self._adamw.step()
        for stack in self._stacks:
            self._step(stack)

    @abstractmethod
    def direction(self, state: dict[str, Any], gradient: Tensor, momentum: Tensor) -> Tensor:
        """The update of a stack of matrices (n, outputs, inputs), as long as an orthogonal matrix is.

        Args:
            state: what is kept of this stack.
            momentum: looks one step ahead, as Nesterov's does.
        """

    def _step(self, stack: _Stack) -> None:
        gradient = stack.gradient()
        state = self.state[stack.parameters[0]]  # of the whole stack, with its first parameter
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        beta, lr = stack.group["momentum"], stack.group["lr"]
        state["momentum"].lerp_(gradient, 1 - beta)
        update = self.direction(state, gradient, gradient.lerp(state["momentum"], beta))
        torch._foreach_mul_(stack.weights, 1 - lr * stack.group["weight_decay"])
        torch._foreach_add_(stack.weights, update.unbind(), alpha=-lr * ADAM_SIZE * max(update.shape[1:]) ** 0.5)


class _Stack:
    """Matrices of one shape and one group."""

    def __init__(self, group: dict[str, Any], parameters: list[nn.Parameter], views: list[Views]):
        self.group, self.parameters, self._views = group, parameters, views
        self.weights = self._matrices([parameter.detach() for parameter in parameters])

    def gradient(self) -> Tensor:
        return torch.stack(self._matrices([parameter.grad for parameter in self.parameters]))

    def _matrices(self, tensors: Sequence[Any]) -> list[Tensor]:
        return [matrix for take, tensor in zip(self._views, tensors, strict=True) for matrix in take(tensor)]


def _stacks(group: dict[str, Any], views: dict[int, Views]) -> list[_Stack]:
    by_shape = defaultdict(list)
    for parameter in group["params"]:
        by_shape[views[id(parameter)](parameter)[0].shape].append(parameter)
    return [_Stack(group, some, [views[id(parameter)] for parameter in some]) for some in by_shape.values()]


def _only(groups: Sequence[dict[str, Any]], wanted: Callable[[nn.Parameter], bool]) -> list[dict[str, Any]]:
    parts = [{**group, "params": [parameter for parameter in group["params"] if wanted(parameter)]} for group in groups]
    return [part for part in parts if part["params"]]
