"""FSDP2: parameters split by rows over the ranks follow the trajectory of one process."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from adafisher_hf import AdaFisher, AdaFisherW
from adafisher_hf.ranks import local
from adafisher_hf.statistics.reduce import message_length
from adafisher_hf.update import batch
from benchmarks.scaling import state_bytes
from tests.distributed.ranks import run_ranks
from tests.models import Tiny, next_token_loss, tiny_batches

STEPS = 10
SETTINGS = {
    "diagonal": {},
    "coupled": {"cls": "AdaFisher", "weight_decay": 0.1},
    "plain kernel": {"kernel": "plain", "weight_decay": 0.1},
    "kronecker": {"structure": "kronecker", "basis_interval": 2, "token_stride": 1},
    "automatic": {"structure": "kronecker", "basis_interval": 2},
    "orthogonal": {"structure": "orthogonal", "basis_interval": 2},
    "orthogonal, coupled": {"cls": "AdaFisher", "structure": "orthogonal", "weight_decay": 0.1},
    "small factors": {"structure": "kronecker", "max_factor_dim": 6, "token_stride": 1},
    "paper": {"mode": "paper", "lr": 1e-4},
}


class Odd(Tiny):
    """Rows that do not divide by the ranks, fewer rows than ranks, a tied head, groups and experts cut in two."""

    def __init__(self):
        super().__init__()
        self.few = nn.Linear(6, 1)
        self.groups = nn.Conv1d(6, 6, 1, groups=2)
        self.experts = nn.Parameter(torch.randn(3, 6, 2))
        self.head.weight = self.embed.weight

    def forward(self, ids, attention_mask=None):
        hidden = self.embed(ids)
        hidden = hidden + self.down(self.norm(self.up(hidden)).tanh())
        hidden = hidden + self.few(hidden).tanh() + self.groups(hidden.mT).mT
        mixed = torch.einsum("btd,edk->btek", hidden, self.experts).tanh()
        hidden = hidden + torch.einsum("btek,edk->btd", mixed, self.experts)
        return self.head(hidden + (hidden @ self.gate).tanh())


def build(knobs):
    torch.manual_seed(0)
    return Odd().double(), {"lr": 1e-2, "update_warmup": 3, "update_interval": 2, **knobs}


def make_optimizer(model, knobs):
    knobs = dict(knobs)
    cls = {"AdaFisher": AdaFisher, "AdaFisherW": AdaFisherW}[knobs.pop("cls", "AdaFisherW")]
    return cls(model.parameters(), model=model, **knobs)


def train(model, optimizer, parts_of, micro_batches=1):
    for ids in tiny_batches(STEPS, shape=(8, 5)):
        optimizer.zero_grad()
        micro = parts_of(ids).chunk(micro_batches)
        for i, part in enumerate(micro):
            if hasattr(model, "set_requires_gradient_sync"):
                model.set_requires_gradient_sync(i + 1 == len(micro))
            (next_token_loss(model, part) / micro_batches).backward()
        optimizer.step()
    return model, optimizer


def weights(model):
    return torch.cat([getattr(p, "full_tensor", lambda p=p: p)().detach().flatten() for p in model.parameters()])


def shard(model, mesh=None):
    fully_shard([model.up, model.norm, model.down], mesh=mesh)
    fully_shard(model, mesh=mesh)


def on_ranks(rank, count):
    mine = lambda ids: ids.chunk(count)[rank]  # noqa: E731
    results = {"messages": count_messages(mine), "bytes": {}}
    if count == 2:
        kernels = ("foreach", "plain")
        results["skipped"] = [skipped_step(rank, 2, {**SETTINGS["kronecker"], "kernel": kernel}) for kernel in kernels]
        results["first step"] = silent_first_step(rank)
    for name, knobs in SETTINGS.items():
        model, knobs = build(knobs)
        shard(model)
        optimizer = make_optimizer(model, knobs)
        results[name] = weights(train(model, optimizer, mine)[0])
        results["bytes"][name] = local_bytes(optimizer)
    model, knobs = build({})
    shard(model)
    results["small buckets"] = small_buckets(mine)
    results["accumulated"] = weights(train(model, make_optimizer(model, knobs), mine, micro_batches=2)[0])
    if count == 4:
        for name in ("diagonal", "kronecker"):
            model, knobs = build(SETTINGS[name])
            shard(model, init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard")))
            results[f"HSDP {name}"] = weights(train(model, make_optimizer(model, knobs), mine)[0])
    return results


def skipped_step(rank, count, knobs):
    """A gradient that is not finite on one rank, in the middle of training: the block stays as it was on all."""
    model, knobs = build(knobs)
    shard(model)
    optimizer = make_optimizer(model, knobs)
    mine = lambda ids: ids.chunk(count)[rank]  # noqa: E731
    train(model, optimizer, mine)
    next_token_loss(model, mine(tiny_batches(1, shape=(8, 5))[0])).backward()
    before = weights(model)
    for param in optimizer.param_groups[0]["params"]:
        if param is model.experts:  # each of them is a block of its own
            param.grad.to_local().fill_(float("nan"))
        elif rank == 0:
            param.grad.to_local().view(-1)[0] = float("nan")
    optimizer.step()
    return torch.equal(weights(model), before), bool(torch.isfinite(weights(train(model, optimizer, mine)[0])).all())


def silent_first_step(rank):
    """Fallbacks alone, with a gradient in the rows of one rank only: all take the step, or none."""
    torch.manual_seed(0)
    model = nn.ParameterList([nn.Parameter(torch.randn(4, 3))])
    fully_shard(model)
    optimizer = AdaFisherW(model.parameters(), model=model)
    (parameter,) = model.parameters()
    parameter.grad = torch.zeros_like(parameter)
    if rank == 0:
        parameter.grad.to_local()[0] = 1.0
    optimizer.step()
    return optimizer.param_groups[0]["step"]


def local_bytes(optimizer):
    tensors = [local(value) for state in optimizer.state.values() for value in state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def small_buckets(mine):
    """Many buckets, of blocks whose rows do not divide by the ranks: each may be a message, so all cut alike."""
    original, batch.BUCKET_NUMBERS = batch.BUCKET_NUMBERS, 40
    try:
        model, knobs = build(SETTINGS["kronecker"])
        shard(model)
        return weights(train(model, make_optimizer(model, knobs), mine)[0])
    finally:
        batch.BUCKET_NUMBERS = original


def count_messages(mine):
    """Sizes of the all-reduces of ``step`` alone, step by step; and what a refresh and an update send."""
    sizes, original = [], torch.distributed.all_reduce

    def counted(tensor, *args, **kwargs):
        sizes[-1].append(tensor.numel())
        return original(tensor, *args, **kwargs)

    model, knobs = build({"update_warmup": 2, "update_interval": 3})
    shard(model)
    optimizer = make_optimizer(model, knobs)
    for ids in tiny_batches(6, shape=(8, 5)):
        optimizer.zero_grad()
        next_token_loss(model, mine(ids)).backward()
        sizes.append([])
        torch.distributed.all_reduce = counted
        optimizer.step()
        torch.distributed.all_reduce = original
    blocks = sum(len(state["step"]) for state in optimizer.state.values())
    return sizes, message_length(optimizer._statistics.taps), [blocks, 2 * blocks]


@pytest.mark.parametrize("count", [2, 4])
def test_sharded_ranks_follow_the_single_process(count):
    ranks = run_ranks(count, on_ranks, count)
    sizes, refresh, update = ranks[0].pop("messages")
    # The statistics at a refresh (steps 0, 1 of the warm-up, then every third), at every step Σ g² and then ‖m‖²,
    # ‖m/D‖² of every block; and once whether there is any gradient.
    expected = [[1, refresh, *update], [refresh, *update], update, [refresh, *update], update, update]
    assert sizes == expected
    stored = ranks[0].pop("bytes")
    if count == 2:
        assert ranks[0].pop("skipped") == [(True, True)] * 2
        assert [ranks[0].pop("first step"), ranks[1]["first step"]] == [1, 1]
    for name in ranks[0]:
        model, knobs = build(SETTINGS.get(name.removeprefix("HSDP ").replace("small buckets", "kronecker"), {}))
        optimizer = make_optimizer(model, knobs)
        alone = weights(train(model, optimizer, parts_of=lambda ids: ids)[0])
        if name in stored:
            assert stored[name] == state_bytes(optimizer, count), "the benchmark counts something else"
        for result in ranks:
            torch.testing.assert_close(result[name], alone, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
