"""Forward passes that can be run again: same inputs, same random numbers, other weights."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import get_device_states, set_device_states

from ..statistics.hooks import Hook


class Randomness:
    """The state of torch's random numbers, on the host and on the devices of some tensors."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._host = torch.get_rng_state()
        self._devices, self._states = get_device_states(*tensors)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Within it they are drawn once more; outside nothing has happened."""
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self._host)
            set_device_states(self._devices, self._states)
            yield


@dataclass(frozen=True)
class ForwardPass:
    """One forward pass of the training loss.

    Attributes:
        run: does it again, with the weights that the model has then, and returns the loss.
        randomness: at its start.
        loss: what it was, a scalar.
        scale: what the loss was multiplied by before it went into the gradients: 1 over the micro-batches, say.
    """

    run: Callable[[], Tensor]
    randomness: Randomness
    loss: Tensor
    scale: Tensor | float = 1.0


class NoBackward(TorchFunctionMode):
    """Within it ``loss.backward()`` does nothing: a closure may call it, and has no graph to go through."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if func is Tensor.backward else func(*args, **(kwargs or {}))


class Recorder:
    """Remembers the forward passes of a model whose loss went through a backward pass.

    What has no backward pass, such as an evaluation, is forgotten with its graph.

    Args:
        model: returns its loss: a mapping with ``loss`` in it, a tuple that begins with it, or the loss itself.
    """

    def __init__(self, model: nn.Module) -> None:
        self.passes: list[ForwardPass] = []
        self.without_loss = False  # the model ran with gradients, and returned no loss
        self._model = weakref.ref(model)
        self._begun: Randomness | None = None
        self._silent = False
        handles = [
            model.register_forward_pre_hook(Hook(self._begin)),
            model.register_forward_hook(Hook(self._end), with_kwargs=True),
        ]
        self.close = partial(_remove, handles)

    def clear(self) -> None:
        """Forgets what was seen."""
        self.passes, self.without_loss = [], False

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Within it nothing is seen."""
        self._silent = True
        try:
            yield
        finally:
            self._silent = False

    def _begin(self, model: nn.Module, args: Any) -> None:
        if torch.is_grad_enabled() and not self._silent and not torch.compiler.is_compiling():
            self._begun = Randomness(list(model.parameters()))

    def _end(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        randomness, self._begun = self._begun, None
        if randomness is None:
            return
        loss = loss_of(output)
        if loss is None or not loss.requires_grad:
            self.without_loss = True
            return
        run = partial(_run_again, self._model, args, kwargs)
        # A copy: the Trainer multiplies the loss in place.
        loss.register_hook(partial(self._went_back, run, randomness, loss.detach().clone()))

    def _went_back(self, run: Callable[[], Tensor], randomness: Randomness, loss: Tensor, scale: Tensor) -> None:
        self.passes.append(ForwardPass(run, randomness, loss, scale.detach().clone()))


@torch.no_grad()
def loss_now(model: nn.Module, passes: Sequence[ForwardPass]) -> Tensor:
    """The loss of some passes with the weights of now; buffers of the model stay as they are."""
    total = torch.zeros(())
    with NoBackward():
        for one in passes:
            with one.randomness.again():
                total = total + call(model, one.run, {}) * one.scale
    return total


def call(model: nn.Module, run: Callable[[], Tensor], weights: Mapping[str, Tensor]) -> Tensor:
    """What ``run`` returns where the model has other weights; it writes into copies of the buffers."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    tensors = {f"model.{name}": tensor for name, tensor in {**buffers, **weights}.items()}
    return functional_call(_Around(model, run), tensors, ())


def loss_of(output: Any) -> Tensor | None:
    """The scalar loss in what a model returns; None: there is none."""
    if isinstance(output, Mapping):
        output = output.get("loss")
    elif isinstance(output, tuple) and output:
        output = output[0]
    return output if isinstance(output, Tensor) and output.ndim == 0 else None


class _Around(nn.Module):
    """A module whose forward pass is any function that uses the model."""

    def __init__(self, model: nn.Module, run: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model, self._run = model, run

    def forward(self) -> Tensor:
        return self._run()


def _run_again(model: weakref.ref[nn.Module], args: Any, kwargs: Any) -> Tensor:
    module = model()
    assert module is not None, "the recorder's hooks go with the model"
    loss = loss_of(module(*args, **kwargs))
    assert loss is not None, "it had a loss the first time"
    return loss


def _remove(handles: list) -> None:
    for handle in handles:
        handle.remove()
