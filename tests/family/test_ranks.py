"""Two processes take the steps of one: DDP for all, FSDP2 for those that need no second look at the model."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

from adafisher_hf import SOAP, AdamQLR
from tests.distributed.fsdp_on_cpu import allow_fsdp_on_cpu
from tests.distributed.ranks import run_ranks
from tests.family.members import MEMBERS, make
from tests.integrations.test_trainer import arguments, data
from tests.models import Tiny, llama, next_token_loss, tiny_batches

STEPS = 6
SHARDED = ("fadam", "sirfshampoo", "muon")  # that train with FSDP2


class Odd(Tiny):
    """Rows that do not divide by the ranks, and fewer rows than ranks."""

    def __init__(self):
        super().__init__()
        self.few, self.kernel = nn.Linear(6, 1), nn.Parameter(torch.randn(3, 2, 6) * 0.3)

    def forward(self, input_ids, labels=None):
        hidden = self.embed(input_ids)
        hidden = hidden + self.down(self.norm(self.up(hidden)).tanh()) + self.few(hidden).tanh()
        hidden = hidden + torch.einsum("btd,ekd->bte", hidden, self.kernel).sum(-1, keepdim=True)
        return self.head(hidden + (hidden @ self.gate).tanh())


class WithLoss(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = Odd().double()

    def forward(self, ids):
        return (next_token_loss(self.inner, ids),)


def train(model, optimizer, mine):
    for ids in tiny_batches(STEPS, shape=(8, 5)):
        optimizer.zero_grad()
        model(mine(ids))[0].backward()
        optimizer.step()


def weights(model):
    return torch.cat([getattr(p, "full_tensor", lambda p=p: p)().detach().flatten() for p in model.parameters()])


def knobs_of(name):
    return {"batch_size": 8} if name.startswith("sirf") else {}


def with_trainer(folder, name, ranks, fsdp, steps=4, resume=False, **more):
    """The weights at the end of a training by name."""
    sharding = {"fsdp": True, "fsdp_config": {"version": 2}} if fsdp else {}
    fixed = dict(optim=name, learning_rate=1e-2, lr_scheduler_type="constant", max_steps=steps, seed=3)
    cut = dict(per_device_train_batch_size=8 // ranks, save_steps=2, max_grad_norm=0.0)
    args = arguments(folder, optim_args=None, save_strategy="steps", **{**fixed, **cut, **sharding, **more})
    trainer = Trainer(llama().double(), args, train_dataset=data(32))
    trainer.train(resume_from_checkpoint=resume)
    return weights(trainer.model)


def on_ranks(rank, folder):
    allow_fsdp_on_cpu()
    found = {("Trainer", "adamqlr"): with_trainer(f"{folder}/ddp", "adamqlr", 2, fsdp=False)}
    for name in SHARDED:
        whole = with_trainer(f"{folder}/{name}", name, 2, fsdp=True)
        shutil.rmtree(f"{folder}/{name}/checkpoint-4", ignore_errors=True)
        dist.barrier()
        found["Trainer", name] = whole, with_trainer(f"{folder}/{name}", name, 2, fsdp=True, resume=True)
    mine = lambda ids: ids.chunk(2)[rank]  # noqa: E731
    for name in MEMBERS:
        model = WithLoss()
        wrapped = DistributedDataParallel(model)
        optimizer = make(name, wrapped, **knobs_of(name))
        train(wrapped, optimizer, mine)
        found["DDP", name] = weights(model), [group.get("damping") for group in optimizer.param_groups]
        if name != "adamqlr":
            found["FSDP2", name] = sharded(name, mine)
    model = WithLoss()
    wrapped = DistributedDataParallel(model)
    train(wrapped, SOAP(wrapped, lr=1e-2), mine)
    found["DDP", "soap"] = weights(model), model(tiny_batches(1, shape=(8, 5))[0])[0].item()
    found["refusals"] = [refusal(AdamQLR), refusal(SOAP)]
    return found


def refusal(cls):
    model = WithLoss()
    fully_shard(model)
    try:
        cls(model)
    except ValueError as error:
        return str(error)


def sharded(name, mine):
    """The end, and the end of a training whose optimizer was saved and loaded in between; what is held here."""
    ends = []
    for interrupted in (False, True):
        model = WithLoss()
        fully_shard(model)
        optimizer = make(name, model, **knobs_of(name))
        train(model, optimizer, mine)
        if interrupted:
            state = optimizer.state_dict()
            optimizer = make(name, model, **knobs_of(name))
            optimizer.load_state_dict(state)
        train(model, optimizer, mine)
        ends.append(weights(model))
    return ends


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return run_ranks(2, on_ranks, str(tmp_path_factory.mktemp("ranks")))


@pytest.fixture(scope="module")
def alone():
    found = {}
    for name in MEMBERS:
        model = WithLoss()
        optimizer = make(name, model, **knobs_of(name))
        train(model, optimizer, lambda ids: ids)
        found[name] = [weights(model), optimizer.param_groups[0].get("damping")]
        train(model, optimizer, lambda ids: ids)
        found[name].append(weights(model))
    return found


@pytest.mark.parametrize("name", MEMBERS)
def test_ddp(ranks, alone, name):
    for found in ranks:
        end, damping = found["DDP", name]
        torch.testing.assert_close(end, alone[name][0], rtol=1e-9, atol=1e-10)
        assert damping == [alone[name][1]]


@pytest.mark.parametrize("name", [name for name in MEMBERS if name != "adamqlr"])
def test_fsdp2(ranks, alone, name):
    for found in ranks:
        whole, resumed = found["FSDP2", name]
        torch.testing.assert_close(whole, alone[name][2], rtol=1e-9, atol=1e-10)
        assert torch.equal(whole, resumed)


def test_the_trainer_with_fsdp2(ranks, tmp_path):
    """The checkpoints are distributed ones; the number of samples is that of all ranks."""
    for name in SHARDED:
        alone = with_trainer(tmp_path, name, 1, fsdp=False)
        for found in ranks:
            whole, resumed = found["Trainer", name]
            torch.testing.assert_close(whole, alone, rtol=1e-6, atol=1e-6)
            assert torch.equal(whole, resumed)


def test_the_trainer_with_ddp(ranks, tmp_path):
    alone = with_trainer(tmp_path, "adamqlr", 1, fsdp=False)
    for found in ranks:
        torch.testing.assert_close(found["Trainer", "adamqlr"], alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(*[found["Trainer", "adamqlr"] for found in ranks])


def test_soap_is_the_same_on_all_ranks(ranks):
    """Not as one process takes the steps: where a factor has no full rank, rounding decides its eigenvectors."""
    assert torch.equal(*[found["DDP", "soap"][0] for found in ranks])
    before = WithLoss()(tiny_batches(1, shape=(8, 5))[0])[0].item()
    assert all(found["DDP", "soap"][1] < before - 0.05 for found in ranks)


def test_what_fsdp2_cannot_do_is_refused(ranks):
    reasons = [
        "AdamQLR does not work with FSDP2: no forward-mode product goes through its gathers; use DDP",
        "SOAP does not work with FSDP2: pytorch-optimizer's takes no parameter that is split; use DDP",
    ]
    assert [found["refusals"] for found in ranks] == [reasons] * 2
