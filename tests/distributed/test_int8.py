"""Momentum in 8 bits over ranks: one process's trajectory, and distributed checkpoints for other numbers of ranks."""

from __future__ import annotations

import peft
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from adafisher_hf import AdaFisherW
from adafisher_hf.ranks import local, whole
from adafisher_hf.update.blockwise import SCALE
from tests.distributed.ranks import run_ranks
from tests.models import Wide, tiny_batches
from tests.test_int8 import SETTINGS as ALL
from tests.test_int8 import build, next_token_loss

STEPS = 8
# The curvature of the paper's mode has a unit, which is that of a rank.
SETTINGS = {name: knobs for name, knobs in ALL.items() if name != "paper"}


class Odd(Wide):
    """A matrix that one rank has all of, and experts that are cut in two."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.randn(1, 64, 64) * 0.1)
        self.experts = nn.Parameter(torch.randn(3, 64, 64) * 0.1)

    def forward(self, ids, attention_mask=None):
        hidden = super().forward(ids) @ self.embed.weight * 0.01
        hidden = hidden + (hidden @ self.one[0]).tanh()
        hidden = hidden + torch.einsum("btd,edk->btk", hidden, self.experts).tanh()
        return self.head(hidden)


def made(setting, split=False):
    def wrapped():
        model = Odd().double()
        if split:
            fully_shard([model.up, model.norm, model.down])
            fully_shard(model)
        return model

    return build(setting, torch.float64, model_class=wrapped)


def train(model, optimizer, batches, mine=lambda ids: ids, network=None):
    for ids in batches:
        optimizer.zero_grad()
        next_token_loss(network or model, mine(ids)).backward()
        optimizer.step()
    return flat(model)


def flat(model):
    return torch.cat([whole(p.detach()).flatten() for p in model.parameters()])


def batches():
    return tiny_batches(STEPS, shape=(8, 5))


def adapted():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(512, 32))
    return peft.get_peft_model(layers, peft.LoraConfig(r=8, target_modules=["0"])).double()


def train_pair(model, network, mine=slice(None)):
    """A in codes, B not."""
    optimizer = AdaFisherW(model, lr=3e-3, lora="pair", state_dtype="int8", update_warmup=2, update_interval=2)
    for step in range(STEPS):
        x = torch.randn(8, 512, generator=torch.Generator().manual_seed(step)).double()[mine]
        optimizer.zero_grad()
        (network(x) - x[:, :32]).square().mean().backward()
        optimizer.step()
    assert sum(SCALE in state for state in optimizer.state.values()) == 1
    return flat(model)


def on_ranks(rank, count, folder):
    def mine(ids):
        return ids.chunk(count)[rank]

    model, half = adapted(), slice(rank * 8 // count, (rank + 1) * 8 // count)
    found = {("DDP", "pair"): train_pair(model, DistributedDataParallel(model), half)}
    model = adapted()
    found["FSDP2", "pair"] = train_pair(model, fully_shard(model), half)
    for setting in SETTINGS:
        model, optimizer = made(setting)
        network = DistributedDataParallel(model)
        found["DDP", setting] = train(model, optimizer, batches(), mine, network)
        model, optimizer = made(setting, split=True)
        train(model, optimizer, batches()[:3], mine)
        save(model, optimizer, f"{folder}/{setting}")
        found["FSDP2", setting] = train(model, optimizer, batches()[3:], mine)
        again, other = made(setting, split=True)
        load(again, other, f"{folder}/{setting}")
        found["resumed", setting] = train(again, other, batches()[3:], mine)
    states = [optimizer.state[p] for p in model.parameters()]
    held = {name: local(state["exp_avg"]) for name, state in zip(names(model), states, strict=True)}
    held = {name: (codes.dtype, len(codes)) for name, codes in held.items()}
    return found, held, one_rank_overflows(rank, model, optimizer)


def names(model):
    return [name for name, _ in model.named_parameters()]


def one_rank_overflows(rank, model, optimizer):
    """Whether codes and scales are what they were, on this rank."""
    parameter = model.down.weight
    before = {key: local(optimizer.state[parameter][key]).clone() for key in ("exp_avg", SCALE)}
    next_token_loss(model, batches()[0]).backward()
    if rank == 0:
        parameter.grad.to_local()[0, 0] = torch.nan
    optimizer.step()
    return all(torch.equal(local(optimizer.state[parameter][key]), value) for key, value in before.items())


def save(model, optimizer, folder):
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"weights": weights, "state": state}, checkpoint_id=folder)


def load(model, optimizer, folder):
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"weights": weights, "state": state}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)


def test_ranks_follow_one_process(tmp_path):
    ranks, held, kept = zip(*run_ranks(2, on_ranks, 2, str(tmp_path), timeout=250), strict=True)
    for setting in SETTINGS:
        alone = train(*made(setting), batches())
        model, optimizer = made(setting)
        load(model, optimizer, tmp_path / setting)  # two ranks' state, by one process
        found = {("one process", setting): train(model, optimizer, batches()[3:])}
        assert_all_end(setting, alone, found, *ranks)
    model = adapted()
    assert_all_end("pair", train_pair(model, model), *ranks)
    assert [rank["embed.weight"] for rank in held] == [(torch.uint8, 41), (torch.uint8, 40)]
    assert [rank["experts"] for rank in held] == [(torch.uint8, 2), (torch.uint8, 1)]
    assert [rank["one"] for rank in held] == [(torch.uint8, 1), (torch.uint8, 0)]
    assert kept == (True, True)


def assert_all_end(setting, alone, *results):
    for result in results:
        for how, weights in ((how, weights) for (how, of), weights in result.items() if of == setting):
            torch.testing.assert_close(weights, alone, rtol=1e-6, atol=1e-8, msg=lambda m, h=how: f"{h}: {m}")
