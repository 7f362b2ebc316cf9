"""Ranks with unlike numbers of batches, and ranks that train models of their own."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

from tests.distributed.ranks import run_ranks
from tests.distributed.test_ddp import SETTINGS, build
from tests.models import Tiny, next_token_loss, tiny_batches

BATCHES = (7, 4)  # of each rank
TOGETHER = 3  # steps that both take afterwards
JOINED = ("diagonal", "kronecker", "orthogonal")


def batches(rank):
    return tiny_batches(BATCHES[rank] + TOGETHER, seed=10 + rank)


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def step(optimizer, network, ids):
    optimizer.zero_grad()
    next_token_loss(network, ids).backward()
    optimizer.step()


def joined(rank, knobs):
    model, optimizer = build(Tiny, knobs)
    network, mine = DistributedDataParallel(model), batches(rank)
    with Join([network, optimizer]):
        for ids in mine[: BATCHES[rank]]:
            step(optimizer, network, ids)
    for ids in mine[BATCHES[rank] :]:
        step(optimizer, network, ids)
    return parameters(model)


def on_rank(rank):
    alone = dist.new_group([0]), dist.new_group([1])
    model, optimizer = build(Tiny, {"process_group": alone[rank]})
    for ids in batches(rank):
        step(optimizer, model, ids)
    return {name: joined(rank, SETTINGS[name]) for name in JOINED}, parameters(model)


def single_process(knobs):
    """The steps of both ranks in one process: a rank without batches adds nothing to the loss."""
    model, optimizer = build(Tiny, knobs)
    first, second = batches(0), batches(1)
    second = [*second[: BATCHES[1]], *[None] * (BATCHES[0] - BATCHES[1]), *second[BATCHES[1] :]]
    for parts in zip(first, second, strict=True):
        optimizer.zero_grad()
        for ids in parts:
            if ids is not None:
                (next_token_loss(model, ids) / 2).backward()
        optimizer.step()
    return parameters(model)


def test_a_rank_that_runs_out_of_batches_joins():
    results = run_ranks(2, on_rank)
    for name in JOINED:
        expected = single_process(SETTINGS[name])
        for result, _ in results:
            torch.testing.assert_close(result[name], expected, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    for rank, (_, own) in enumerate(results):
        model, optimizer = build(Tiny, {})
        for ids in batches(rank):
            step(optimizer, model, ids)
        assert torch.equal(own, parameters(model)), "a process group of one rank heard of the other"
