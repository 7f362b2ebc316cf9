"""What an estimator does with a model: weights from the gradient of the logits, or a backward pass of its own.

Both need logits that a module of the model has made: a fused or chunked loss has none, and gets one error.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .estimators.base import Estimator
from .hooks import Hook
from .tap import Gate, no_logits


def watch_logits(model: nn.Module, estimator: Estimator, gate: Gate) -> list[Any]:
    """Puts the estimator's hooks on a model, before any tap's: its head's tap needs the weights too.

    Returns:
        Their handles; none for an estimator that takes the gradients as they come.

    Raises:
        ValueError: a model whose labels or tokens the estimator cannot tell apart.
    """
    handles = []
    gate.awaits_own_pass, gate.awaits_weights = estimator.has_own_pass, estimator.weighs_tokens
    if estimator.weighs_tokens:
        _refuse_two_kinds_of_tokens(model)
        hook = Hook(_weigh_with_logits, estimator, gate)
        handles.append(_head_of(model).register_forward_hook(hook))
    if estimator.has_own_pass:
        _refuse_several_labels(model)
        # Before the hook that ends the call, which the mask of the padding belongs to.
        handles.append(model.register_forward_hook(Hook(_take_own_pass, estimator, gate), prepend=True))
    return handles


def _refuse_two_kinds_of_tokens(model: Any) -> None:
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            "estimator=improved weighs a token by the gradient of its logits, and the encoder's tokens have none: "
            "use estimator=sampled or empirical"
        )


def _refuse_several_labels(model: Any) -> None:
    if getattr(getattr(model, "config", None), "problem_type", None) == "multi_label_classification":
        raise ValueError(
            "estimator=sampled draws one label an example, and this model has several (problem_type="
            "'multi_label_classification'): use estimator=improved or empirical"
        )


def _logits_of(output: Any) -> Any:
    """The logits in what a model returns: ``output.logits``, its first element, or itself."""
    logits = getattr(output, "logits", None)
    if logits is not None:
        return logits
    return output[0] if isinstance(output, tuple) and output else output


def _head_of(model: Any) -> nn.Module:
    """The module that makes the logits: a language model's head, else the last linear layer, else the model itself."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        head = next((module for module in reversed(list(model.modules())) if isinstance(module, nn.Linear)), model)
    return head


def _weigh_with_logits(estimator: Estimator, gate: Gate, module: nn.Module, args: tuple, output: Any) -> None:
    logits = _logits_of(output)
    gate.token_weights = None  # until the next gradient says what they are
    if gate.active and isinstance(logits, Tensor) and logits.requires_grad:
        logits.register_hook(partial(_weigh, estimator, gate))


def _mask_of(logits: Tensor, gate: Gate) -> Tensor | None:
    """Of padding, (batch · tokens,); None where there is none, or a row of logits is an example's."""
    mask = None if logits.dim() == 2 else gate.padding.mask(gate.padding.mask_name(""), logits.shape[:-1])
    return None if mask is None else mask.reshape(-1)


@torch.no_grad()
def _weigh(estimator: Estimator, gate: Gate, grad: Tensor) -> None:
    scale = 1.0 if gate.inverse_scale is None else gate.inverse_scale()
    gate.token_weights = estimator.token_weights(grad * scale)


def _take_own_pass(estimator: Estimator, gate: Gate, model: nn.Module, args: tuple, output: Any) -> None:
    if not gate.active or not torch.is_grad_enabled():
        return
    if torch.compiler.is_compiling():
        raise ValueError("estimator=sampled has a backward pass of its own, which torch.compile does not let in")
    logits = _logits_of(output)
    if not isinstance(logits, Tensor) or not logits.requires_grad or logits.dim() < 2:
        raise ValueError(no_logits("sampled"))
    loss = estimator.own_loss(logits, _mask_of(logits, gate))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gate.in_own_pass = True
    try:
        # Of the gradients themselves nothing is kept, and those of the training loss are not touched.
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    finally:
        gate.in_own_pass = False
