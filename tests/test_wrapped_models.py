"""What flattens parameters or copies modules is refused in a loop of one's own too, also when it comes later."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from adafisher_hf import AdaFisherW
from tests.models import next_token_loss, tiny, tiny_batches

FSDP1 = r"FSDP1 flattens parameters: use FSDP2 \(torch.distributed.fsdp.fully_shard\) or DDP"
DATA_PARALLEL = "DataParallel copies the model.*: start one process a GPU .*use DDP or FSDP2"
DEEPSPEED = "DeepSpeed ZeRO flattens parameters: use FSDP2 .* or DDP"


class Inside(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return self.inner(*args)


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def fsdp1(model, use_orig_params):
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=use_orig_params)


def refused(message, model, params=None):
    with pytest.raises(ValueError, match=message):
        AdaFisherW(model.parameters() if params is None else params, model=model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def step(model, optimizer):
    next_token_loss(model, tiny_batches(1)[0]).backward()
    optimizer.step()


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1(one_rank, use_orig_params):
    refused(FSDP1, fsdp1(tiny(), use_orig_params))
    refused(FSDP1, Inside(fsdp1(tiny(), use_orig_params)))
    inner = tiny()
    fsdp1(inner, use_orig_params)
    refused(FSDP1, inner, params=list(inner.parameters()) or [nn.Parameter(torch.ones(1))])


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_around_a_model_whose_optimizer_was_there_before(one_rank, use_orig_params):
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model)
    before = copy.deepcopy(model.state_dict())
    wrapped = fsdp1(model, use_orig_params)
    with pytest.raises(ValueError, match=FSDP1):
        step(wrapped, optimizer)
    assert not optimizer.state and len(before) > 0


def test_a_flat_parameter_in_a_later_group(one_rank):
    model = tiny()
    optimizer = AdaFisherW([model.up.weight], model=model)
    with pytest.raises(ValueError, match=FSDP1):
        optimizer.add_param_group({"params": list(fsdp1(nn.Linear(2, 2), False).parameters())})
    assert len(optimizer.param_groups) == 1


def test_data_parallel():
    refused(DATA_PARALLEL, nn.DataParallel(tiny()))
    refused(DATA_PARALLEL, Inside(nn.DataParallel(tiny())))


def test_data_parallel_inside_a_model_whose_optimizer_was_there_before():
    model = Inside(tiny())
    optimizer = AdaFisherW(model.parameters(), model=model)
    model.inner = nn.DataParallel(model.inner)
    with pytest.raises(ValueError, match=DATA_PARALLEL):
        step(model, optimizer)
    assert not optimizer.state


def test_a_replica_that_data_parallel_makes_of_a_model_whose_optimizer_was_there_before():
    """Without several GPUs DataParallel makes no replicas, and does no harm: this is what it would make."""
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model)
    replica = model._replicate_for_data_parallel()
    with pytest.raises(ValueError, match=DATA_PARALLEL):
        replica(tiny_batches(1)[0])
    optimizer.close()
    assert not model._forward_pre_hooks


def test_deepspeed():
    model = tiny()
    model.up.weight.ds_id = 3  # ZeRO 3 marks its parameters so
    refused(DEEPSPEED, model)
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model)
    optimizer.param_groups[0]["params"] = [nn.Parameter(torch.cat([p.flatten() for p in model.parameters()]))]
    with pytest.raises(ValueError, match="parameters were exchanged for 1 others.*DeepSpeed ZeRO.*use FSDP2 .* or DDP"):
        optimizer.step()


def test_ddp_and_fsdp2_are_not_taken_for_them(one_rank):
    """FSDP2 after the optimizer exchanges its parameters, as accelerate does: see tests/distributed."""
    mesh = dist.init_device_mesh("cpu", (1,))
    for wrap, before in ((DistributedDataParallel, False), (DistributedDataParallel, True), (fully_shard, False)):
        model = tiny()
        optimizer = AdaFisherW(model.parameters(), model=model) if before else None
        wrapped = wrap(model, mesh=mesh) if wrap is fully_shard else wrap(model)
        optimizer = optimizer or AdaFisherW(wrapped.parameters(), model=wrapped)
        step(wrapped, optimizer)
        assert optimizer.param_groups[0]["step"] == 1
