"""SOAP is pytorch-optimizer's, with checked options, a rate for the vocabulary, and states that resume."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn
from transformers import Trainer

import adafisher_hf
from adafisher_hf.cli import main
from adafisher_hf.integrations.entries import OPTIMIZERS
from tests.family.test_members import saved_and_read
from tests.integrations.test_refusals import fsdp
from tests.integrations.test_trainer import arguments, data
from tests.models import llama, tiny, tiny_batches

Published = pytest.importorskip("pytorch_optimizer").SOAP
from adafisher_hf import SOAP, SOAPConfig  # noqa: E402

RULES = {
    "defaults": ({}, {}),
    "others": (
        {"beta1": 0.8, "beta2": 0.9, "shampoo_beta": 0.7, "precondition_frequency": 2, "max_precondition_dim": 40},
        {"betas": (0.8, 0.9), "shampoo_beta": 0.7, "precondition_frequency": 2, "max_precondition_dim": 40},
    ),
}


def train(model, optimizer, batches):
    losses = []
    for ids in batches:
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_same_weights(a, b):
    for (name, p), q in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert torch.equal(p, q[1]), name


@pytest.mark.parametrize(("knobs", "published"), RULES.values(), ids=RULES)
def test_it_takes_the_steps_of_the_package(knobs, published):
    ours, theirs = llama(), llama()
    batches = tiny_batches(12)
    train(ours, SOAP(ours, lr=1e-2, weight_decay=0.1, **knobs), batches)
    train(theirs, Published(theirs.parameters(), lr=1e-2, weight_decay=0.1, **published), batches)
    assert_same_weights(ours, theirs)


def test_the_vocabulary_has_a_rate_of_its_own():
    ours, theirs = llama(), llama()
    table = theirs.get_input_embeddings().weight
    groups = [
        {"params": [p for p in theirs.parameters() if p is not table]},
        {"params": [table], "lr": 4e-2},
    ]
    optimizer = SOAP(ours, lr=1e-2, weight_decay=0.1, vocabulary_lr=4.0)
    train(ours, optimizer, tiny_batches(6))
    train(theirs, Published(groups, lr=1e-2, weight_decay=0.1), tiny_batches(6))
    assert_same_weights(ours, theirs)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-2}  # what schedules see


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_resumed_training_ends_in_the_same_bits(dtype):
    def start():
        model = llama().to(dtype)
        return model, SOAP(model, lr=1e-2, precondition_frequency=2, vocabulary_lr=2.0)

    batches = tiny_batches(8)
    whole, optimizer = start()
    train(whole, optimizer, batches)
    model, optimizer = start()
    train(model, optimizer, batches[:5])
    weights, state = saved_and_read((model.state_dict(), optimizer.state_dict()))
    other, resumed = start()
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    train(other, resumed, batches[5:])
    assert_same_weights(whole, other)


def test_the_options_of_a_resumed_run_are_its_own():
    model = llama()
    optimizer = SOAP(model, lr=1e-2)
    train(model, optimizer, tiny_batches(2))
    resumed = SOAP(llama(), lr=1e-2, precondition_frequency=3, beta1=0.5, vocabulary_lr=2.0)
    resumed.load_state_dict(optimizer.state_dict())
    assert [group["betas"] for group in resumed.param_groups] == [(0.5, 0.95)] * 2
    assert [group["lr_multiple"] for group in resumed.param_groups] == [1.0, 2.0]
    assert {state["precondition_frequency"] for state in resumed.state.values()} == {3}
    before = str(resumed.state_dict())
    for state in (adafisher_hf.FAdam(llama()).state_dict(), Published(llama().parameters()).state_dict()):
        with pytest.raises(ValueError, match="was not saved by SOAP: resume with the optimizer that saved it"):
            resumed.load_state_dict(state)
    assert str(resumed.state_dict()) == before


def test_a_copy_goes_on_by_itself():
    model = llama()
    optimizer = SOAP(model, lr=1e-2)
    train(model, optimizer, tiny_batches(3))
    twin, copied = copy.deepcopy((model, optimizer))
    train(model, optimizer, tiny_batches(2, seed=9))
    train(twin, copied, tiny_batches(2, seed=9))
    assert_same_weights(model, twin)


def test_it_learns_in_half_precision():
    model = llama().bfloat16()
    losses = train(model, SOAP(model, lr=1e-2), tiny_batches(1) * 20)
    assert losses[-1] < losses[0] - 1


def test_a_group_may_come_later():
    model = tiny()
    optimizer = SOAP([model.up.weight, model.embed.weight], model=model)
    optimizer.add_param_group({"params": model.gate, "weight_decay": 0.0})
    found = [(group["weight_decay"], group["lr_multiple"], len(group["params"])) for group in optimizer.param_groups]
    assert found == [(0.01, 1.0, 1), (0.01, 1.0, 1), (0.0, 1.0, 1)]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"lr": -1}, ValueError, "lr must be at least 0, not -1, and finite"),
        ({"weight_decay": float("nan")}, ValueError, "weight_decay must be at least 0, not nan, and finite"),
        ({"lr": "fast"}, TypeError, "lr must be a number, not 'fast'"),
        ({"ns_steps": 5}, TypeError, "unknown argument 'ns_steps', which is an option of Muon"),
        ({"max_preconditon_dim": 5}, TypeError, "did you mean 'max_precondition_dim'\\?"),
        ({"beta1": 1.0}, ValueError, "beta1 must be a number in \\[0, 1\\), or none, got 1.0"),
        ({"model": None}, ValueError, "SOAP needs the model, to know its vocabulary: pass model=model"),
        ({"model": llama()}, ValueError, "is not one of the model's"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments(changes, kind, message):
    model = tiny()
    with pytest.raises(kind, match=message):
        SOAP(model.parameters(), **{"model": model, **changes})


def test_a_group_with_a_wrong_number_is_not_added():
    model = tiny()
    optimizer = SOAP([model.up.weight], model=model)
    for group in ({"lr": -1.0}, {"params": [nn.Parameter(torch.ones(2))]}):
        with pytest.raises(ValueError, match="lr must be at least 0|is not one of the model's"):
            optimizer.add_param_group({"params": [model.gate], **group})
    assert len(optimizer.param_groups) == 1


def test_fsdp2_is_refused_before_training(tmp_path):
    args = arguments(tmp_path, optim="soap", optim_args=None)
    for key, value in fsdp(2).items():
        object.__setattr__(args, key, value)
    with pytest.raises(ValueError, match="optim='soap' takes no parameter that FSDP2 has split: use DDP"):
        OPTIMIZERS["soap"].check(args, llama(), SOAPConfig())


def test_a_missing_package_is_one_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    monkeypatch.delitem(sys.modules, "adafisher_hf.family.soap")
    trainer = Trainer(llama(), arguments(tmp_path, optim="soap", optim_args=None), train_dataset=data())
    with pytest.raises(ImportError, match=r'SOAP needs the package pytorch-optimizer: pip install "adafisher-hf\[fam'):
        trainer.train()
    assert main(["coverage", "gpt2", "--memory"]) == 0
    rows = capsys.readouterr().out
    assert "muon" in rows and "soap" not in rows
