"""What the members of the family have in common: groups, state, checkpoints, and what comes before a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config.base import OptimizerConfig
from ..config.groups import check_parameters, check_rates, listed
from ..config.knobs import knobs_of
from ..layers import accumulation_dtype
from ..ranks import any_rank, is_distributed, local, zeros_like
from ..update.rounding import subtract

State = dict[str, Tensor]


class FamilyOptimizer(torch.optim.Optimizer):
    """An optimizer whose knobs are those of a config, and lie in its parameter groups.

    A subclass says what a parameter's state is at the start, and how a step goes.

    Args:
        params: tensors, named tensors, parameter groups, or a model.
        lr: learning rate.
        weight_decay: of the rule.
        knobs: some of the fields of ``config_class``.

    Raises:
        ValueError: nothing trainable, complex parameters, those that FSDP1, DeepSpeed or tensor parallelism have
            flattened or cut, or a number out of range.
        TypeError: an unknown knob, or one of the wrong type.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[OptimizerConfig]]
    moving: ClassVar[tuple[str, ...]] = ()  # knobs that say where a number starts which the steps then move

    def __init__(
        self, params: Iterable | nn.Module, lr: float | Tensor, weight_decay: float, knobs: dict[str, Any]
    ) -> None:
        config = self.config_class.from_knobs(knobs)
        defaults = dict(lr=lr, weight_decay=weight_decay, optimizer=self.name)
        super().__init__(listed(params), {**defaults, **config.to_dict()})

    @property
    def config(self) -> OptimizerConfig:
        """The options that it was made with."""
        return self._config_of(self.defaults)

    def initial_state(self, param: Any, group: dict[str, Any], device: torch.device) -> State:
        """All tensors that a parameter will ever have: distributed checkpoints drop what appears later."""
        raise NotImplementedError

    def update(self) -> None:
        """Takes a step; gradients and states are there."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group and checks it.

        Raises:
            ValueError, TypeError: see the class.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_rates(group)
            check_parameters(group["params"])
            self._config_of(group)
        except BaseException:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient.

        Args:
            closure: zeroes the gradients, runs forward and backward pass and returns the loss.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.init_state()
        if not self._is_dry_step():
            self.update()
        return loss

    def init_state(self) -> None:
        """Makes the state of every parameter that has none yet, as the first step would."""
        for group, param in self._params():
            used = param.requires_grad or param.grad is not None
            if used and not self.state[param]:
                self.state[param] = self._first_state(param, group, param.device)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state with the dtypes it was saved with (torch casts everything to the parameter's dtype).

        The knobs stay those of this optimizer, also where the saved one had others.

        Raises:
            ValueError: it is of another optimizer, or made for other options or another model; nothing was loaded.
        """
        self._check_saved(state_dict)
        own = [{name: group[name] for name in self._own_knobs()} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, options in zip(self.param_groups, own, strict=True):
            group.update(options)
        for _, param, saved in self._pairs(state_dict):
            for key, value in saved.items():
                # The number of steps is for the host, as in torch's own optimizers.
                device = torch.device("cpu") if key == "step" else param.device
                self.state[param][key] = value.detach().to(device, copy=True)

    def with_gradient(self, group: dict[str, Any]) -> list[Any]:
        """The parameters of a group that take a step.

        Raises:
            ValueError: a sparse gradient.
        """
        params = [param for param in group["params"] if param.grad is not None and param.numel()]
        for param in params:
            if param.grad.is_sparse:
                raise ValueError(
                    f"{type(self).__name__} takes no sparse gradients: make the embedding with sparse=False"
                )
        return params

    def subtract(self, params: list[Tensor], updates: list[Tensor]) -> None:
        """param ← param - update, where half-precision weights keep what is rounded off; ``updates`` are lost."""
        for param, update in zip(params, updates, strict=True):
            compensation = self.state[param].get("compensation")
            subtract(local(param), update, None if compensation is None else local(compensation))

    def count_step(self, params: list[Tensor]) -> list[int]:
        """The number of the step that each parameter takes now, from 1."""
        for param in params:
            self.state[param]["step"] += 1
        return [int(self.state[param]["step"]) for param in params]

    def _first_state(self, param: Any, group: dict[str, Any], device: torch.device) -> State:
        state = {"step": torch.zeros(()), **self.initial_state(param, group, device)}
        if group["rounding"] == "kahan" and param.dtype != accumulation_dtype(param.dtype):
            state["compensation"] = zeros_like(param, param.dtype, device)
        return state

    def _is_dry_step(self) -> bool:
        """Distributed checkpoints call step() with zero gradients, before anything was trained, to make the state."""
        if any(state["step"] for state in self.state.values() if state):
            return False
        grads = [param.grad for _, param in self._params() if param.grad is not None]
        real = any(bool(local(grad).any()) for grad in grads if not grad.is_meta)
        if is_distributed():
            device = grads[0].device if grads else torch.device("cpu")
            real = any_rank(real, device, None)
        return not real

    def _check_saved(self, saved: dict[str, Any]) -> None:
        check_groups(saved, self.param_groups, self.name, type(self).__name__)
        for group, param, state in self._pairs(saved):
            self._check_fit(param, state, self._first_state(param, group, torch.device("meta")))

    def _check_fit(self, param: Tensor, state: State, expected: State) -> None:
        found, needed = _described(state), _described(expected)
        different = [key for key in {**needed, **found} if state and found.get(key) != needed.get(key)]
        if different:
            what = ", ".join(
                f"{key} is {found.get(key, 'missing')}, not {needed.get(key, 'there')}" for key in different
            )
            raise ValueError(
                f"this optimizer state does not fit a parameter of shape {tuple(param.shape)} ({what}): resume with "
                "the options and the model that it was saved with, or start a new run from the checkpoint's weights"
            )

    def _pairs(self, saved: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Tensor, State]]:
        """Group, parameter and what is saved of it."""
        ids = [i for group in saved["param_groups"] for i in group["params"]]
        for (group, param), i in zip(self._params(), ids, strict=True):
            yield group, param, saved["state"].get(i, {})

    def _params(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        return ((group, param) for group in self.param_groups for param in group["params"])

    def _own_knobs(self) -> list[str]:
        return [name for name in knobs_of(self.config_class) if name not in self.moving]

    def _config_of(self, options: dict[str, Any]) -> OptimizerConfig:
        return self.config_class(**{name: options[name] for name in knobs_of(self.config_class)})


def check_groups(saved: Any, groups: Sequence[dict[str, Any]], name: str, title: str) -> None:
    """Checks that a state is one of the same optimizer, with as many parameters.

    Args:
        saved: a ``state_dict()``, or whatever was found in its place.
        groups: of the optimizer that is to take it.
        name: that its groups have as ``optimizer``.
        title: of its class, for the errors.

    Raises:
        ValueError: it is not.
    """
    found = saved.get("param_groups") if isinstance(saved, dict) else None
    if not isinstance(found, list) or not isinstance(saved.get("state"), dict):
        raise ValueError("no optimizer state: optimizer.state_dict() makes one")
    if {group.get("optimizer") for group in found} != {name}:
        raise ValueError(
            f"this optimizer state was not saved by {title}: resume with the optimizer that saved it, or start a "
            "new run from the checkpoint's weights"
        )
    counts = [[len(group["params"]) for group in some] for some in (found, groups)]
    if counts[0] != counts[1]:
        raise ValueError(f"this optimizer state has groups of {counts[0]} parameters, {title} has {counts[1]}")


def _described(state: State) -> dict[str, str]:
    return {key: f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}" for key, value in state.items()}
