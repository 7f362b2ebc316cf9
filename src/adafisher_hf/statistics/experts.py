"""The forward pass of experts that tells each of their two linear maps' taps what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..compat import gate_of, grouped_linear, is_expert_parallel
from ..layers import accumulation_dtype
from ..layers.experts import PARTS, has
from .sums import Sums, second_moment
from .tap import Tap, full_precision

TAPS = "_adafisher_taps"  # attribute of the module: a list


class ExpertTap(Tap):
    """The statistics of one linear map of all experts: sums and token counts for each expert.

    A dense factor of an expert is made of its own rows, whose number has to be known: the host waits for it.
    """

    def __init__(self, *args: Any, part: str):
        super().__init__(*args)
        self.part = part

    @property
    def count_shape(self) -> tuple[int, ...]:
        return (self.stack, 1)

    def attach(self, module: nn.Module) -> Any:
        taps = vars(module).setdefault(TAPS, [])
        taps.append(self)
        return _Handle(taps, self)

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
        weights = self._token_weights(count, torch.empty(0, dtype=accumulation_dtype(y.dtype), device=y.device))
        picked = _Picked(experts, tokens, weights[tokens])
        if self.dense:  # whose sums wait for the host anyway: nothing is computed of rows that do not count
            picked = picked.only(picked.weights.nonzero().flatten())
        with full_precision(y):
            inputs = self._sum("input", picked.of(x), picked.experts, picked.weights)
        y.register_hook(partial(self._take_output, inputs, picked))

    @torch.no_grad()
    def _take_output(self, inputs: Tensor, picked: _Picked, grad: Tensor) -> None:
        if not self.gate.takes_gradients:
            return
        weights, estimated = picked.weights, self.gate.weights_of(picked.tokens)
        if estimated is not None:
            weights = weights * estimated.to(weights).square()
        with full_precision(grad):
            outputs = self._sum("output", picked.of(grad), picked.experts, weights)
        counts = picked.weights.new_zeros(self.stack).index_add_(0, picked.experts, picked.weights)
        self.commit(Sums(inputs, outputs, counts.unsqueeze(1)))

    def _token_weights(self, count: int, like: Tensor) -> Tensor:
        """0 for padding and for places that are not measured, otherwise how many tokens each one stands for."""
        weights, length = like.new_ones(count), self.gate.sequence
        if length is not None and count % length == 0:
            places = torch.arange(count, device=like.device) % length
            stride = min(self.stride, length)
            weights = ((places % stride) == self.gate.turn % stride) * (weights * stride)
        mask = self.gate.padding.flat_mask(self.mask_name, count)
        return weights if mask is None else weights * mask.to(weights)

    def _sum(self, side: str, rows: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        if side not in self.dense:
            squared = rows.to(weights.dtype).square() * weights.unsqueeze(1)
            return squared.new_zeros(self.stack, rows.shape[1]).index_add_(0, experts, squared)
        counts = torch.bincount(experts, minlength=self.stack).tolist()
        own = zip(rows.unsqueeze(0).split(counts, 1), weights.split(counts), strict=True)
        return torch.cat([second_moment(part, weight, dense=True) for part, weight in own])


class _Picked(NamedTuple):
    """The rows that are measured: of which expert and token each is, for how many it stands, and where (None: all)."""

    experts: Tensor
    tokens: Tensor
    weights: Tensor
    rows: Tensor | None = None

    def only(self, rows: Tensor) -> _Picked:
        """Some of them."""
        return _Picked(self.experts[rows], self.tokens[rows], self.weights[rows], rows)

    def of(self, x: Tensor) -> Tensor:
        """Their rows of x."""
        return x if self.rows is None else x[self.rows]


class _Handle:
    """Takes a tap off again."""

    def __init__(self, taps: list[ExpertTap], tap: ExpertTap):
        self.taps, self.tap = taps, tap

    def remove(self) -> None:
        self.taps[:] = [tap for tap in self.taps if tap is not self.tap]


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

    taps: list[ExpertTap] = vars(experts).get(TAPS, [])
    if is_expert_parallel(experts) or torch.compiler.is_compiling():
        return moe.grouped_mm_experts_forward(experts, hidden_states, top_k_index, top_k_weights)
    chosen, order = torch.sort(top_k_index.reshape(-1))
    tokens = order // top_k_index.shape[-1]
    every = torch.arange(experts.num_experts, device=chosen.device)
    ends = torch.searchsorted(chosen, every, right=True).to(torch.int32)  # bincount would wait for the device

    def linear(x: Tensor, weight: str) -> Tensor:
        bias = getattr(experts, f"{weight}_bias")[chosen] if has(experts, "bias") else None
        grouped = _linear_one_by_one if x.dtype == torch.float64 else grouped_linear()
        y = grouped(x, getattr(experts, weight), offs=ends, bias=bias, is_transposed=experts.is_transposed)
        for tap in taps:
            if not tap.retired and tap.part == PARTS[weight]:
                tap.watch(x, y, chosen, tokens, len(hidden_states))
        return y

    gated = has(experts, "gate")
    activate: Callable[[Tensor], Tensor] = gate_of(experts) if gated else experts.act_fn
    hidden = activate(linear(hidden_states[tokens], "gate_up_proj" if gated else "up_proj"))
    out = linear(hidden, "down_proj")
    if has(experts, "post_expert_norm"):
        out = experts.post_expert_norm(out)
    weighted = out * top_k_weights.reshape(-1)[order].unsqueeze(-1)
    # Each row is written once, and the sum has one order: index_add_ has none on CUDA.
    by_token = torch.zeros_like(weighted).index_copy(0, order, weighted)
    return by_token.view(*top_k_index.shape, weighted.shape[-1]).sum(1).to(hidden_states.dtype)


def _linear_one_by_one(x: Tensor, weight: Tensor, *, offs: Tensor, bias: Tensor | None, is_transposed: bool) -> Tensor:
    """Grouped products for float64, which torch's kernel does not know."""
    rows = x.tensor_split(offs[:-1].long().cpu())
    y = torch.cat([part @ (w if is_transposed else w.mT) for part, w in zip(rows, weight, strict=True)])
    return y if bias is None else y + bias
