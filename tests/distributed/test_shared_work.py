"""Who orthogonalises which matrix, and what is sent for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from adafisher_hf import AdaFisherW
from adafisher_hf.preconditioners import orthogonal
from adafisher_hf.update import batch, shards
from tests.distributed.ranks import run_ranks

WIDTH, LAYERS, STEPS = 16, 6, 3
HIDDEN = LAYERS * WIDTH * WIDTH  # numbers


class Deep(nn.Module):
    """Six equal hidden matrices and a head."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x).tanh()
        return self.head(x)


def counted(rank, count, wrap):
    """Matrices that this rank orthogonalised and bytes that it received by gathers, of the last step."""
    torch.manual_seed(0)
    model = Deep()
    network = wrap(model)
    optimizer = AdaFisherW(model, lr=1e-2, structure="orthogonal", narrow_side=False)
    work, received = [], []
    originals = orthogonal.orthogonalised, shards.all_gather, torch.distributed.broadcast

    def orthogonalised(wide, *args):
        work[-1] += len(wide)
        return originals[0](wide, *args)

    def all_gather(out, mine, **kwargs):
        received[-1] += (out.numel() - mine.numel()) * out.element_size()
        return originals[1](out, mine, **kwargs)

    def broadcast(flat, src, **kwargs):
        received[-1] += flat.numel() * flat.element_size() if src != rank else 0
        return originals[2](flat, src=src, **kwargs)

    orthogonal.orthogonalised, shards.all_gather = orthogonalised, all_gather
    for _ in range(STEPS):
        optimizer.zero_grad()
        x = torch.randn(8, WIDTH)
        nn.functional.cross_entropy(network(x), torch.arange(8) % 3).backward()
        work.append(0)
        received.append(0)
        torch.distributed.broadcast = broadcast  # not those of DDP's forward pass
        optimizer.step()
        torch.distributed.broadcast = originals[2]
    orthogonal.orthogonalised, shards.all_gather = originals[:2]
    return work, received


def ddp(model):
    return DistributedDataParallel(model)


def fsdp(model):
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def on_ranks(rank, count):
    batch.BUCKET_NUMBERS = WIDTH * WIDTH  # as for matrices that are as large as a bucket
    return {"ddp": counted(rank, count, ddp), "fsdp": counted(rank, count, fsdp)}


@pytest.mark.parametrize("count", [2, 4])
def test_each_matrix_is_orthogonalised_once_under_ddp_and_gathered_once_under_fsdp(count):
    ranks = run_ranks(count, on_ranks, count)
    shares = [result["ddp"][0] for result in ranks]
    assert all(sum(step) == LAYERS for step in zip(*shares, strict=True))
    assert all(max(step) == -(-LAYERS // count) for step in zip(*shares, strict=True))
    for result in ranks:
        others = [4 * WIDTH * WIDTH * (LAYERS - made) for made in result["ddp"][0]]
        assert result["ddp"][1] == others  # each direction once, and nothing else
        assert result["fsdp"][0] == [LAYERS] * STEPS
        assert result["fsdp"][1] == [4 * (count - 1) * HIDDEN // count] * STEPS
