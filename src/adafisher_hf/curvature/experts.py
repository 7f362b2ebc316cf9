"""The forward pass of experts that tells each of their two linear maps' taps what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .capture import Tap, full_precision
from .factors import Sums, wide

TAPS = "_adafisher_taps"  # attribute of the module: its taps by part


class ExpertTap(Tap):
    """The statistics of one linear map of all experts: sums and token counts for each expert.

    A dense factor of an expert is made of its own rows, whose number has to be known: the host waits for it.
    """

    def __init__(self, *args: Any, part: str):
        super().__init__(*args)
        self.part = part

    @property
    def rows_shape(self) -> tuple[int, ...]:
        return (self.stack, 1)

    def attach(self, module: nn.Module) -> Any:
        taps = vars(module).setdefault(TAPS, {})
        taps[self.part] = self
        return _Handle(taps, self.part)

    @torch.no_grad()
    def watch(self, x: Tensor, y: Tensor, experts: Tensor, tokens: Tensor, count: int) -> None:
        """Takes the input of a map now and the gradient of its output later.

        Args:
            x: rows in the order of their experts, (rows, d_in).
            y: (rows, d_out).
            experts: of each row, ascending, (rows,).
            tokens: of each row, its place among the model's tokens, (rows,).
            count: how many tokens there are.
        """
        if self.retired or not self.gate.active or not y.requires_grad:
            return
        stride = self.gate.stride
        weights = torch.full_like(experts, stride, dtype=wide(y.dtype))
        mask = self.gate.padding.flat_mask(self.mask_name, count)
        if mask is not None:
            weights = weights * mask.to(weights)[tokens]
        weights, experts = weights[::stride], experts[::stride]
        with full_precision(y):
            inputs = self._sum("input", x[::stride], experts, weights)
        y.register_hook(partial(self._take_output, inputs, experts, weights))

    @torch.no_grad()
    def _take_output(self, inputs: Tensor, experts: Tensor, weights: Tensor, grad: Tensor) -> None:
        with full_precision(grad):
            outputs = self._sum("output", grad[:: self.gate.stride], experts, weights)
        if self.gate.inverse_scale is not None:
            outputs = outputs * self.gate.inverse_scale() ** 2
        rows = weights.new_zeros(self.stack).index_add_(0, experts, weights)
        self.commit(Sums(inputs, outputs, rows.unsqueeze(1)))

    def _sum(self, side: str, rows: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        rows = rows.to(weights.dtype)
        if side not in self.dense:
            squared = rows.square() * weights.unsqueeze(1)
            return squared.new_zeros(self.stack, rows.shape[1]).index_add_(0, experts, squared)
        counts = torch.bincount(experts, minlength=self.stack).tolist()
        own = zip((rows * weights.unsqueeze(1)).split(counts), rows.split(counts), strict=True)
        return torch.stack([weighted.mT @ plain for weighted, plain in own])


class _Handle:
    """Takes a tap off again."""

    def __init__(self, taps: dict[str, ExpertTap], part: str):
        self.taps, self.part = taps, part

    def remove(self) -> None:
        self.taps.pop(self.part, None)


def experts_forward(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Experts as transformers' ``grouped_mm`` runs them, with taps on both maps.

    Compiled and expert-parallel models run without taps, and use their gradients.

    Args:
        experts: the module; it says itself how its weights lie.
        hidden_states: (tokens, hidden).
        top_k_index: experts of every token, (tokens, k).
        top_k_weights: their weights, (tokens, k).

    Returns:
        (tokens, hidden).
    """
    from transformers.integrations import moe

    taps: dict[str, ExpertTap] = vars(experts).get(TAPS, {})
    if experts._is_expert_parallel or torch.compiler.is_compiling():
        return moe.grouped_mm_experts_forward(experts, hidden_states, top_k_index, top_k_weights)
    chosen, order = torch.sort(top_k_index.reshape(-1))
    tokens = order // top_k_index.shape[-1]
    ends = torch.bincount(chosen, minlength=experts.num_experts).cumsum(0).to(torch.int32)

    def linear(x: Tensor, weight: str) -> Tensor:
        bias = getattr(experts, f"{weight}_bias")[chosen] if experts.has_bias else None
        grouped = _linear_one_by_one if x.dtype == torch.float64 else moe._grouped_linear
        y = grouped(x, getattr(experts, weight), ends, bias=bias, is_transposed=experts.is_transposed)
        tap = taps.get("down" if weight == "down_proj" else "up")
        if tap is not None:
            tap.watch(x, y, chosen, tokens, len(hidden_states))
        return y

    activate: Callable[[Tensor], Tensor] = experts._apply_gate if experts.has_gate else experts.act_fn
    hidden = activate(linear(hidden_states[tokens], "gate_up_proj" if experts.has_gate else "up_proj"))
    out = linear(hidden, "down_proj")
    if experts.has_post_expert_norm:
        out = experts.post_expert_norm(out)
    weighted = out * top_k_weights.reshape(-1)[order].unsqueeze(-1)
    # Each row is written once, and the sum has one order: index_add_ has none on CUDA.
    by_token = torch.zeros_like(weighted).index_copy(0, order, weighted)
    return by_token.view(len(hidden_states), -1, weighted.shape[-1]).sum(1).to(hidden_states.dtype)


def _linear_one_by_one(x: Tensor, weight: Tensor, ends: Tensor, bias: Tensor | None, is_transposed: bool) -> Tensor:
    """Grouped products for float64, which torch's kernel does not know."""
    rows = x.tensor_split(ends[:-1].long().cpu())
    y = torch.cat([part @ (w if is_transposed else w.mT) for part, w in zip(rows, weight, strict=True)])
    return y if bias is None else y + bias
