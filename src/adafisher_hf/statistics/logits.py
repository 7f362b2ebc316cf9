"""What an estimator does with a model: weights from the gradient of the logits, or a backward pass of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .estimators import Estimator, logits_of
from .hooks import Hook
from .tap import Gate


def watch_logits(model: nn.Module, estimator: Estimator, gate: Gate) -> list[Any]:
    """Puts the estimator's hooks on a model, before any tap's: its head's tap needs the weights too.

    Returns:
        Their handles; none for an estimator that takes the gradients as they come.
    """
    handles = []
    gate.awaits_own_pass = estimator.has_own_pass
    if estimator.weighs_tokens:
        hook = Hook(_weigh_with_logits, estimator, gate)
        handles.append(_head_of(model).register_forward_hook(hook))
    if estimator.has_own_pass:
        handles.append(model.register_forward_hook(Hook(_take_own_pass, estimator, gate)))
    return handles


def _head_of(model: Any) -> nn.Module:
    """The module that makes the logits: a language model's head, else the last linear layer, else the model itself."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        head = next((module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear)), model)
    return head


def _weigh_with_logits(estimator: Estimator, gate: Gate, module: nn.Module, args: tuple, output: Any) -> None:
    logits = logits_of(output)
    gate.token_weights = None  # until the next gradient says what they are
    if gate.active and isinstance(logits, Tensor) and logits.requires_grad:
        logits.register_hook(partial(_weigh, estimator, gate))


@torch.no_grad()
def _weigh(estimator: Estimator, gate: Gate, grad: Tensor) -> None:
    scale = 1.0 if gate.inverse_scale is None else gate.inverse_scale()
    gate.token_weights = estimator.token_weights(grad * scale)


def _take_own_pass(estimator: Estimator, gate: Gate, model: nn.Module, args: tuple, output: Any) -> None:
    if not gate.active or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    loss = estimator.own_loss(logits_of(output))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gate.in_own_pass = True
    try:
        # Of the gradients themselves nothing is kept, and those of the training loss are not touched.
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    finally:
        gate.in_own_pass = False
