"""Interrupted, killed, saved in part, copied: training goes on to the same bits, or one error says what to do."""

from __future__ import annotations

import copy
import logging
import os
import signal
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import adafisher_hf
from adafisher_hf import AdaFisherTrainer, AdaFisherW
from adafisher_hf.integrations.checkpoints import is_complete
from tests.models import llama, next_token_loss, tiny, tiny_batches

DIAGONAL = "update_warmup=3,update_interval=2"
KRONECKER = f"{DIAGONAL},structure=kronecker,basis_interval=2"
ORTHOGONAL = f"{DIAGONAL},structure=orthogonal,basis_interval=2"


def rows(count=48, length=8):
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": ids, "labels": ids} for ids in torch.randint(2, 64, (count, length), generator=generator)]


def trainer_of(folder, model=None, cls=Trainer, **changes):
    settings = {
        "output_dir": str(folder), "optim": "adafisherw", "optim_args": DIAGONAL, "learning_rate": 1e-2,
        "weight_decay": 0.1, "max_steps": 8, "per_device_train_batch_size": 8, "save_steps": 3, "seed": 3,
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, **changes,
    }  # fmt: skip
    return cls(model or llama(), TrainingArguments(**settings), train_dataset=rows(), eval_dataset=rows(8))


def adafisher(trainer):
    optimizer = trainer.optimizer
    while not isinstance(optimizer, AdaFisherW):
        optimizer = optimizer.optimizer
    return optimizer


def everything(model, optimizer):
    """Weights and optimizer state, by a name that says where a difference is."""
    found = {f"weight {name}": p.detach() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        found |= {f"{key} of {name}": value for key, value in optimizer.state[p].items()}
    for i, group in enumerate(optimizer.param_groups):
        found |= {f"{key} of group {i}": torch.tensor(group[key]) for key in ("step", "lr", "beta", "damping")}
    return found


def result(trainer):
    return everything(trainer.model, adafisher(trainer))


def assert_same(a, b):
    assert a.keys() == b.keys()
    different = [name for name in a if not (a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]))]
    assert not different


def hooks_a_module(model):
    return {len(module._forward_hooks) for module in model.modules()}


# Whatever interrupts a run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optim_args", [DIAGONAL, KRONECKER, ORTHOGONAL], ids=["diagonal", "kronecker", "orthogonal"])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, optim_args, dtype):
    whole = trainer_of(tmp_path, llama().to(dtype), optim_args=optim_args)
    whole.train()
    # Not the model that was saved: all that counts comes from the checkpoint.
    resumed = trainer_of(tmp_path, llama(seed=5).to(dtype), optim_args=optim_args)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same(result(whole), result(resumed))
    assert [log["loss"] for log in whole.state.log_history if "loss" in log] == [
        log["loss"] for log in resumed.state.log_history if "loss" in log
    ]


def test_a_resumed_run_with_codes_of_eight_bits_ends_in_the_same_bits(tmp_path):
    pytest.importorskip("bitsandbytes")
    args = f"{DIAGONAL},state_dtype=int8"
    whole, resumed = (trainer_of(tmp_path, llama(seed, hidden_size=64), optim_args=args) for seed in (0, 5))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    found = result(whole)
    assert found["exp_avg of model.embed_tokens.weight"].dtype == torch.uint8
    assert_same(found, result(resumed))


def test_a_dtype_change_of_nothing_changes_nothing(tmp_path):
    ends = []
    for touch in (lambda model: model, lambda model: model.to(torch.bfloat16).cpu()):
        trainer = trainer_of(tmp_path, llama().to(torch.bfloat16))
        trainer.create_optimizer()
        touch(trainer.model)
        trainer.train()
        again = trainer_of(tmp_path, touch(llama(seed=5).to(torch.bfloat16)))
        again.create_optimizer()
        touch(again.model)
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
        ends += [result(trainer), result(again)]
    for end in ends[1:]:
        assert_same(ends[0], end)


@pytest.mark.parametrize("optim_args", [DIAGONAL, KRONECKER, ORTHOGONAL], ids=["diagonal", "kronecker", "orthogonal"])
def test_resumed_adapters_end_in_the_same_bits(tmp_path, optim_args):
    """The checkpoint holds the adapters alone."""

    def adapted():
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        return peft.get_peft_model(llama(), config)

    whole, resumed = (trainer_of(tmp_path, adapted(), optim_args=optim_args) for _ in range(2))
    whole.train()
    assert (tmp_path / "checkpoint-3/adapter_model.safetensors").exists()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same(result(whole), result(resumed))


def killed_in_a_save(folder, file):
    """Trains, and dies by SIGKILL with half of ``file`` of checkpoint-6 written."""
    torch.set_num_threads(1)
    trainer = trainer_of(folder)
    save, write = torch.save, type(trainer.state).save_to_json

    def die_halfway(path):
        if path == os.path.join(folder, "checkpoint-6", file):
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = lambda value, path: (save(value, path), die_halfway(path))
    type(trainer.state).save_to_json = lambda state, path: (write(state, path), die_halfway(path))
    write_model = trainer.model.save_pretrained

    def save_model(path, **options):
        write_model(path, **options)
        die_halfway(os.path.join(path, "model.safetensors"))

    trainer.model.save_pretrained = save_model
    trainer.train()


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_killed_in_the_middle_of_a_save_the_previous_checkpoint_serves(tmp_path, start, caplog, file):
    process = start(killed_in_a_save, str(tmp_path / "out"), file)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert sorted(folder.name for folder in (tmp_path / "out").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    for cls in (Trainer, AdaFisherTrainer):
        with pytest.raises(ValueError, match=r"checkpoint-6 was cut short.*resume from .*checkpoint-3"):
            trainer_of(tmp_path / "out", cls=cls).train(resume_from_checkpoint=tmp_path / "out/checkpoint-6")
    resumed = trainer_of(tmp_path / "out", llama(seed=5))
    resumed.train(resume_from_checkpoint=True)
    assert "checkpoint-6 was cut short while it was saved" in caplog.text
    assert is_complete(tmp_path / "out/checkpoint-6")
    whole = trainer_of(tmp_path / "whole")
    whole.train()
    assert_same(result(whole), result(resumed))


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_killed_while_an_older_checkpoint_of_the_same_step_is_overwritten(tmp_path, start, file):
    """The state of the older one is still there, and says nothing of the files that stand beside it now."""
    trainer_of(tmp_path / "out", llama(seed=5), max_steps=6).train()
    assert is_complete(tmp_path / "out/checkpoint-6")
    process = start(killed_in_a_save, str(tmp_path / "out"), file)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not is_complete(tmp_path / "out/checkpoint-6")
    resumed = trainer_of(tmp_path / "out", llama(seed=5))
    resumed.train(resume_from_checkpoint=True)
    whole = trainer_of(tmp_path / "whole")
    whole.train()
    assert_same(result(whole), result(resumed))


def test_a_save_of_another_optimizer_is_left_as_it_is(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, optim="adamw_torch", optim_args=None, max_steps=3)
    trainer.train()
    found = []
    monkeypatch.setattr(trainer, "save_model", lambda *_, **__: found.append(is_complete(tmp_path / "checkpoint-3")))
    trainer.train()
    assert found == [True]


def test_without_any_complete_checkpoint(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match="no complete checkpoint beside it: start anew"):
        trainer_of(tmp_path).train(resume_from_checkpoint=True)


def test_other_optimizers_resume_as_they_did(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(ValueError, match="Can't find a valid checkpoint"):
        trainer_of(tmp_path, optim="adamw_torch", optim_args=None).train(resume_from_checkpoint=True)


# Best models, second trainings, copies


def test_the_best_model_is_loaded_also_after_an_interruption(tmp_path):
    settings = dict(
        load_best_model_at_end=True, eval_strategy="steps", eval_steps=3, metric_for_best_model="loss",
        greater_is_better=True,  # so that the best one is not the last
    )  # fmt: skip
    whole = trainer_of(tmp_path, **settings)
    whole.train()
    resumed = trainer_of(tmp_path, llama(seed=5), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    best = whole.state.best_model_checkpoint
    assert resumed.state.best_model_checkpoint == best == str(tmp_path / "checkpoint-3")
    loaded = type(whole.model).from_pretrained(best)
    for trainer in (whole, resumed):
        assert all(torch.equal(p, q) for p, q in zip(trainer.model.parameters(), loaded.parameters(), strict=True))
    assert_same(result(whole), result(resumed))


def recorded(trainer):
    """The batches that the model is trained on."""
    batches = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(kwargs["input_ids"].clone()) if module.training else None,
        with_kwargs=True,
    )
    return batches


@pytest.mark.parametrize("optim_args", [DIAGONAL, KRONECKER, ORTHOGONAL], ids=["diagonal", "kronecker", "orthogonal"])
def test_a_second_train_is_the_first_one_continued(tmp_path, optim_args):
    """The oracle is a loop without a Trainer over the batches that were seen."""
    settings = dict(lr_scheduler_type="constant", max_grad_norm=0.0, weight_decay=0.0, save_strategy="no")
    trainer = trainer_of(tmp_path, max_steps=4, optim_args=optim_args, **settings)
    batches = recorded(trainer)
    trainer.train()
    trainer.train()
    assert len(batches) == adafisher(trainer).param_groups[0]["step"] == 8
    assert hooks_a_module(trainer.model) <= {0, 1}
    model = llama().train()
    knobs = adafisher_hf.AdaFisherConfig.from_optim_args(optim_args).to_dict()
    optimizer = AdaFisherW(model, lr=1e-2, **knobs)
    for ids in batches:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    for name, p in model.named_parameters():
        q = trainer.model.get_parameter(name)
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(optimizer.curvature(p), adafisher(trainer).curvature(q), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "orthogonal"])
def test_copied_together_model_and_optimizer_go_on_alike(structure):
    model = tiny()
    optimizer = AdaFisherW(model.parameters(), model=model, lr=1e-2, structure=structure)
    pair = (model, optimizer)
    batches = tiny_batches(8)
    ends = []
    for i, ids in enumerate(batches):
        if i == 4:
            copied = copy.deepcopy(pair)
        step(*pair, ids)
    for ids in batches[4:]:
        step(*copied, ids)
    ends = [everything(*pair), everything(*copied)]
    assert_same(*ends)
    assert hooks_a_module(copied[0]) == hooks_a_module(model)


def step(model, optimizer, ids):
    optimizer.zero_grad()
    next_token_loss(model, ids).backward()
    optimizer.step()


# Checkpoints that do not fit


def test_a_checkpoint_of_the_model_alone_starts_the_optimizer_anew(tmp_path):
    """As with any optimizer: weights, step and schedule go on, and the curvature is estimated again."""
    trainer_of(tmp_path, save_only_model=True, max_steps=6).train()
    checkpoint = tmp_path / "checkpoint-3"
    assert not (checkpoint / "optimizer.pt").exists()
    resumed = trainer_of(tmp_path, llama(seed=5))
    batches = recorded(resumed)
    before = {}
    resumed.model.register_forward_pre_hook(
        lambda module, args: before.setdefault("weights", copy.deepcopy(module.state_dict())) and None
    )
    resumed.train(resume_from_checkpoint=str(checkpoint))
    saved = type(resumed.model).from_pretrained(checkpoint).state_dict()
    assert all(torch.equal(before["weights"][name], saved[name]) for name in saved)
    assert (len(batches), resumed.state.global_step) == (5, 8)
    assert adafisher(resumed).param_groups[0]["step"] == 5
    assert all(torch.isfinite(value).all() for value in result(resumed).values())


REFUSED = {
    "adamw": (
        dict(optim="adamw_torch", optim_args=None),
        {},
        "not saved by AdaFisherW: resume with the optimizer that saved it",
    ),
    "mode": (dict(optim_args="mode=paper"), {}, "mode is paper, not calibrated"),
    "structure": (dict(optim_args="structure=kronecker"), {}, r"col_basis is .*, not there"),
    "diagonal": ({}, dict(optim_args=KRONECKER), r"col_basis is missing"),
    "state_dtype": (
        {},
        dict(optim_args="state_dtype=bfloat16"),
        "state_dtype is float32, not bfloat16",
    ),
    "max_factor_dim": (
        dict(optim_args="structure=kronecker"),
        dict(optim_args="structure=kronecker,max_factor_dim=40"),
        r"embed_tokens.*max_factor_dim is 1024, not 40; .*row_factor_0 is \(1, 64, 64\), not \(1, 64\)",
    ),
}


@pytest.mark.parametrize(("saved", "wanted", "message"), REFUSED.values(), ids=REFUSED)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, saved, wanted, message):
    trainer_of(tmp_path, max_steps=3, **{"learning_rate": 1e-4, **saved}).train()
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, **wanted).train(resume_from_checkpoint=True)


def test_another_damping_goes_on_with_it(tmp_path, caplog):
    trainer_of(tmp_path, max_steps=3).train()
    resumed = trainer_of(tmp_path, optim_args=f"{DIAGONAL},damping=0.5")
    with caplog.at_level(logging.INFO, logger="adafisher_hf"):
        resumed.train(resume_from_checkpoint=True)
    assert [r.getMessage() for r in caplog.records if "other options" in r.getMessage()] == [
        "resumed with other options than the state was saved with: damping from 0.1 to 0.5"
    ]
    optimizer = adafisher(resumed)
    assert (optimizer.param_groups[0]["damping"], optimizer.config.damping) == (0.5, 0.5)


def test_our_checkpoint_in_another_dtype_is_refused(tmp_path):
    """A bf16 model's state has Kahan compensations."""
    trainer_of(tmp_path, llama().to(torch.bfloat16), max_steps=3).train()
    with pytest.raises(ValueError, match="compensation is .*, not there"):
        trainer_of(tmp_path).train(resume_from_checkpoint=True)


def test_another_model_is_refused(tmp_path):
    trainer_of(tmp_path, max_steps=3).train()
    other = trainer_of(tmp_path / "other", llama(intermediate_size=64))
    state = torch.load(Path(tmp_path) / "checkpoint-3/optimizer.pt")
    assert isinstance(other.model, nn.Module)
    with pytest.raises(ValueError, match=r"mlp.*not \(64"):
        other.create_optimizer().load_state_dict(state)
