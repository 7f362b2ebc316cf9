"""Around the Trainer: a loop with accelerate, hyper-parameter search, Seq2SeqTrainer."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, T5Config, T5ForConditionalGeneration, Trainer

from adafisher_hf import AdaFisherW
from tests.integrations.test_trainer_settings import KNOBS, adafisher, arguments, rows
from tests.models import llama
from tests.oracles.rows import assert_same_training
from tests.test_invariance import STRUCTURES


@pytest.fixture
def fresh_accelerate():
    """It keeps the first mixed precision of a process otherwise."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def loop(structure, accelerator=None, precision="no"):
    """Two micro-batches a step, clipped, with a schedule; by hand where there is no accelerator."""
    model = llama().train()
    optimizer = AdaFisherW(model.parameters(), model=model, lr=1e-2, weight_decay=0.1, **KNOBS, **STRUCTURES[structure])
    prepared = optimizer
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    loader, network = DataLoader(rows(), batch_size=4), model
    if accelerator is not None:
        network, prepared, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    for i, batch in enumerate(loader):
        last = i % 2 == 1
        if accelerator is not None:
            with accelerator.accumulate(network):
                accelerator.backward(network(**batch).loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(network.parameters(), 0.5)
                prepared.step()
                schedule.step()
                prepared.zero_grad()
            continue
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext():
            loss = model(**batch).loss
        (loss.float() / 2).backward()
        if last:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    assert optimizer.param_groups[0]["step"] == 6
    return model, optimizer


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_a_loop_with_accelerate_is_the_loop_without(fresh_accelerate, structure, precision):
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    assert_same_training(*loop(structure, accelerator), *loop(structure, precision=precision))


def hooks_a_module(model):
    return [len(module._forward_hooks) for module in model.modules()]


def test_hyperparameter_search_gives_each_trial_hooks_of_its_own(tmp_path):
    """Trials are as good as runs by themselves, and leave nothing on the models of trials before."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    models, seen, options = [], [], ["damping=0.3,update_interval=2", "structure=kronecker,update_interval=3"]

    def new_model():
        models.append(llama().double())
        return models[-1]

    class Searched(Trainer):
        def evaluate(self, *args, **kwargs):
            gc.collect()
            optimizer = adafisher(self)
            assert optimizer._statistics.model is models[-1]
            assert set(hooks_a_module(models[-1])) == {0, 1}
            assert not any(sum(hooks_a_module(model)) for model in models[:-1])
            seen.append({name: optimizer.curvature(p) for name, p in models[-1].named_parameters()})
            return super().evaluate(*args, **kwargs)

    def space(trial):
        return {
            "learning_rate": trial.suggest_categorical("learning_rate", [1e-2, 3e-3]),
            "optim_args": trial.suggest_categorical("optim_args", options),
        }

    def arguments_of(**changes):
        return arguments(tmp_path, eval_strategy="steps", eval_steps=5, **changes)

    searched = Searched(args=arguments_of(), model_init=new_model, train_dataset=rows(), eval_dataset=rows(8))
    sampler = optuna.samplers.GridSampler({"learning_rate": [1e-2, 3e-3], "optim_args": options}, seed=0)
    best = searched.hyperparameter_search(space, n_trials=4, direction="minimize", sampler=sampler)
    objectives = {}
    for learning_rate in (1e-2, 3e-3):
        for optim_args in options:
            args = arguments_of(learning_rate=learning_rate, optim_args=optim_args)
            alone = Trainer(args=args, model_init=lambda: llama().double(), train_dataset=rows(), eval_dataset=rows(8))
            alone.train()
            curvature = {name: adafisher(alone).curvature(p) for name, p in alone.model.named_parameters()}
            assert any(all(torch.equal(trial[name], curvature[name]) for name in trial) for trial in seen)
            objectives[learning_rate, optim_args] = alone.state.log_history[-2]["eval_loss"]
    assert len(seen) == 4
    chosen = best.hyperparameters["learning_rate"], best.hyperparameters["optim_args"]
    assert best.objective == pytest.approx(min(objectives.values()))
    assert chosen == min(objectives, key=objectives.get)


def t5():
    torch.manual_seed(0)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
            dropout_rate=0.0,
        )
    ).double()  # fmt: skip


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_seq2seq_trainer_follows_a_loop(tmp_path, structure):
    """The plain one, generating while it evaluates: what is generated leaves no trace in the statistics."""
    knobs = ",".join(f"{key}={value}" for key, value in {**KNOBS, **STRUCTURES[structure]}.items())
    args = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path), optim="adafisherw", optim_args=knobs, learning_rate=1e-2, max_steps=5,
        lr_scheduler_type="constant", max_grad_norm=0.0, per_device_train_batch_size=8, eval_strategy="steps",
        eval_steps=1, predict_with_generate=True, generation_max_length=4, save_strategy="no", use_cpu=True,
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    data = [{"input_ids": row["input_ids"], "labels": row["labels"].flip(0)[:6]} for row in rows()]
    model, batches = t5(), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(kwargs) if module.training else None, with_kwargs=True
    )
    trainer = Seq2SeqTrainer(model, args, train_dataset=data, eval_dataset=data[:8])
    trainer.train()
    other = t5().train()
    optimizer = AdaFisherW(other, lr=1e-2, **KNOBS, **STRUCTURES[structure])
    for batch in batches:
        optimizer.zero_grad()
        other(input_ids=batch["input_ids"], labels=batch["labels"]).loss.backward()
        optimizer.step()
    assert len(batches) == 5
    assert_same_training(model, adafisher(trainer), other, optimizer)
