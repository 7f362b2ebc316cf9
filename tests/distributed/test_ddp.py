"""N ranks with a share of each batch follow the trajectory of one process with the whole of it."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from adafisher_hf import AdaFisher, AdaFisherW
from adafisher_hf.statistics.reduce import message_length
from tests.distributed.ranks import run_ranks
from tests.models import Routed, Tiny, next_token_loss, tiny_batches

STEPS = 12
SETTINGS = {
    "diagonal": {},
    "coupled": {"cls": "AdaFisher", "weight_decay": 0.1},
    "kronecker": {"structure": "kronecker", "basis_interval": 2, "token_stride": 1},
    "automatic": {"structure": "kronecker", "basis_interval": 2},
    "orthogonal": {"structure": "orthogonal", "basis_interval": 2},
    "rotated": {"structure": "kronecker", "basis_interval": 2, "second_moment": "rotated", "token_stride": 2},
    "paper": {"mode": "paper", "lr": 1e-4},
}
EXPERTS = {"experts": {}, "kronecker experts": SETTINGS["kronecker"], "automatic experts": SETTINGS["automatic"]}
EXPERTS |= {"orthogonal experts": SETTINGS["orthogonal"]}


class Conditional(Tiny):
    """A layer that only some samples go through, so that ranks differ in what fires."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(6, 6)

    def forward(self, ids, attention_mask=None):
        hidden = self.embed(ids)
        chosen = (ids[:, 0] % 4 == 0).nonzero().flatten()
        if len(chosen):
            hidden = hidden.index_add(0, chosen, self.extra(hidden[chosen]))
        hidden = hidden + self.down(self.norm(self.up(hidden)).tanh())
        return self.head(hidden + (hidden @ self.gate).tanh())


def build(model_class, knobs):
    torch.manual_seed(0)
    model = model_class().double()
    knobs = {"lr": 1e-2, "update_warmup": 3, "update_interval": 2, **knobs}
    cls = {"AdaFisher": AdaFisher, "AdaFisherW": AdaFisherW}[knobs.pop("cls", "AdaFisherW")]
    return model, cls(model.parameters(), model=model, **knobs)


def train(model, optimizer, parts_of, micro_batches=1, **wrapping):
    """``parts_of(batch)``: what this rank gets of it."""
    network = DistributedDataParallel(model, **wrapping) if torch.distributed.is_initialized() else model
    for ids in tiny_batches(STEPS, shape=(8, 5)):
        optimizer.zero_grad()
        micro = parts_of(ids).chunk(micro_batches)
        for i, part in enumerate(micro):
            last = i + 1 == len(micro)
            silent = contextlib.nullcontext() if last or network is model else network.no_sync()
            with silent:
                (next_token_loss(network, part) / micro_batches).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def on_ranks(rank, count):
    results = {}
    for name, knobs in SETTINGS.items():
        model, optimizer = build(Tiny, knobs)
        results[name] = train(model, optimizer, lambda ids: ids.chunk(count)[rank])
        optimizer.close()
    model, optimizer = build(Tiny, {})
    results["accumulated"] = train(model, optimizer, lambda ids: ids.chunk(count)[rank], micro_batches=2)
    model, optimizer = build(Tiny, {})
    results["static_graph"] = train(model, optimizer, lambda ids: ids.chunk(count)[rank], static_graph=True)
    model, optimizer = build(Conditional, {})
    chosen = lambda ids: ids.chunk(count)[rank]  # noqa: E731
    results["conditional"] = train(model, optimizer, chosen, find_unused_parameters=True)
    for name, knobs in EXPERTS.items():
        model, optimizer = build(Routed, knobs)
        results[name] = train(model, optimizer, chosen)
    results["messages"] = count_messages(rank, count)
    return results


def count_messages(rank, count):
    """Sizes of the all-reduces of ``step`` alone, step by step."""
    model, optimizer = build(Tiny, {"update_warmup": 2, "update_interval": 3})
    network, sizes = DistributedDataParallel(model), []
    original = torch.distributed.all_reduce

    def counted(tensor, *args, **kwargs):
        sizes[-1].append(tensor.numel())
        return original(tensor, *args, **kwargs)

    for ids in tiny_batches(6, shape=(8, 5)):
        optimizer.zero_grad()
        next_token_loss(network, ids.chunk(count)[rank]).backward()
        sizes.append([])
        torch.distributed.all_reduce = counted
        optimizer.step()
        torch.distributed.all_reduce = original
    return sizes, message_length(optimizer._statistics._taps.values())


@pytest.mark.parametrize("count", [2, 4])
def test_ranks_follow_the_single_process(count):
    ranks = run_ranks(count, on_ranks, count)
    settings = {**SETTINGS, "accumulated": {}, "static_graph": {}, "conditional": {}, **EXPERTS}
    for name, knobs in settings.items():
        model_class = {"conditional": Conditional, **dict.fromkeys(EXPERTS, Routed)}.get(name, Tiny)
        model, optimizer = build(model_class, knobs)
        alone = train(model, optimizer, parts_of=lambda ids: ids)
        for result in ranks:
            torch.testing.assert_close(result[name], alone, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
            assert torch.equal(result[name], ranks[0][name]), f"{name}: the ranks have drifted apart"
    sizes, length = ranks[0]["messages"]
    # One message a refresh (steps 0, 1 of the warm-up, then every third), and none in between.
    # Before the first of them, whether any rank has something to measure at all.
    assert sizes == [[1, length], [length], [], [length], [], []]
