"""Pairs of adapters on several ranks follow one process, split by rows or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from adafisher_hf import AdaFisherW
from tests.distributed.ranks import run_ranks
from tests.preconditioners.test_pair import N, adapted, random

STEPS = 6


def train(model, network, mine=slice(None)):
    optimizer = AdaFisherW(model, lr=1e-2, lora="pair", update_warmup=2, update_interval=2)
    for step in range(STEPS):
        x, y = random(12, N, seed=step)[mine], (torch.arange(12) % 4)[mine]
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return {name: getattr(p, "full_tensor", lambda p=p: p)().detach() for name, p in model.named_parameters()}


def on_ranks(rank, count):
    mine = slice(rank * 12 // count, (rank + 1) * 12 // count)
    model = adapted()
    results = {"ddp": train(model, DistributedDataParallel(model), mine)}
    model = adapted()
    for layer in (model.base_model.model.one, model.base_model.model.two):
        fully_shard(layer)
    results["fsdp"] = train(model, fully_shard(model), mine)
    return results


@pytest.mark.parametrize("count", [2, 4])
def test_ranks_follow_the_single_process(count):
    """Of rank 3, a factor of three rows lies on two ranks or on three of four."""
    model = adapted()
    alone = train(model, model)
    for result in run_ranks(count, on_ranks, count):
        for how, parameters in result.items():
            for name, value in parameters.items():
                torch.testing.assert_close(
                    value, alone[name], rtol=1e-6, atol=1e-9, msg=lambda m, h=how, n=name: f"{h} {n}: {m}"
                )
