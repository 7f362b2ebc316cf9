"""Training through the plain Trainer and through ours: logs, configs, checkpoints, interruption."""

import json

import pytest
import torch
from transformers import (
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import adafisher_hf
from adafisher_hf import AdaFisherConfig, AdaFisherSeq2SeqTrainer, AdaFisherTrainer
from adafisher_hf.config.adafisher import CONFIG_NAME
from tests.models import llama

FIGURES = ("mean", "log_spread", "update_ratio")


def data(n=24, vocabulary=64):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, vocabulary, (n, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def arguments(folder, cls=TrainingArguments, **kwargs):
    defaults = {
        "output_dir": str(folder),
        "optim": "adafisherw",
        "optim_args": "update_interval=2,update_warmup=2",
        "learning_rate": 1e-2,
        "max_steps": 4,
        "logging_steps": 2,
        "save_strategy": "no",
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return cls(**{**defaults, **kwargs})


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("optim", ["adafisher", "adafisherw"])
def test_the_plain_trainer_learns(tmp_path, optim):
    args = arguments(tmp_path, optim=optim, max_steps=30, logging_steps=5)
    trainer = Trainer(llama(), args, train_dataset=data())
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0] - 0.3
    assert type(trainer.optimizer.optimizer).name == optim


def test_plain_and_own_trainer_take_the_same_steps(tmp_path):
    models = []
    for cls in (Trainer, AdaFisherTrainer):
        trainer = cls(llama(), arguments(tmp_path), train_dataset=data())
        trainer.train()
        models.append(weights(trainer.model))
    assert_same(*models)


def test_logs_carry_curvature_beside_the_training_loss_only(tmp_path):
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=2)
    trainer = AdaFisherTrainer(llama(), args, train_dataset=data(), eval_dataset=data(4))
    trainer.train()
    expected = {f"curvature/{kind}/{figure}" for kind in ("linear", "norm", "embedding+linear") for figure in FIGURES}
    logs = trainer.state.log_history
    assert sum("loss" in log for log in logs) == 2
    for log in logs:
        found = {key for key in log if key.startswith("curvature/")}
        assert found == (expected if "loss" in log else set())
        assert all(isinstance(log[key], float) for key in found)
    json.dumps(logs)


def test_config_is_in_output_dir_from_the_start_and_in_every_checkpoint(tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append((tmp_path / CONFIG_NAME).exists())

    args = arguments(tmp_path, save_strategy="steps", save_steps=2)
    trainer = AdaFisherTrainer(llama(), args, train_dataset=data(), callbacks=[Look])
    trainer.train()
    trainer.save_model(tmp_path / "final")
    assert seen
    assert all(seen)
    expected = AdaFisherConfig(update_interval=2, update_warmup=2).resolved()
    for folder in (tmp_path, tmp_path / "checkpoint-2", tmp_path / "checkpoint-4", tmp_path / "final"):
        assert AdaFisherConfig.from_pretrained(folder) == expected


def test_config_of_one_run_makes_the_next(tmp_path):
    AdaFisherTrainer(llama(), arguments(tmp_path / "a"), train_dataset=data()).train()
    again = arguments(tmp_path / "b", optim_args=f"config={tmp_path / 'a'}")
    optimizer = Trainer(llama(), again).create_optimizer()
    assert optimizer.config == AdaFisherConfig.from_pretrained(tmp_path / "a")


def test_other_optimizers_are_left_alone(tmp_path):
    args = arguments(tmp_path, optim="sgd", optim_args=None, save_strategy="steps", save_steps=4)
    trainer = AdaFisherTrainer(llama(), args, train_dataset=data())
    trainer.train()
    assert not list(tmp_path.rglob(CONFIG_NAME))
    assert not any(key.startswith("curvature/") for log in trainer.state.log_history for key in log)


def test_an_optimizer_given_or_made_by_a_subclass(tmp_path):
    model = llama()
    optimizer = adafisher_hf.AdaFisher(model.parameters(), model=model, lr=1e-2)

    class Own(AdaFisherTrainer):
        def create_optimizer(self, model=None):
            self.optimizer = adafisher_hf.AdaFisherW(self.model.parameters(), model=self.model, lr=1e-2)
            return self.optimizer

    given = AdaFisherTrainer(model, arguments(tmp_path / "given"), train_dataset=data(), optimizers=(optimizer, None))
    made = Own(llama(), arguments(tmp_path / "made"), train_dataset=data())
    for trainer in (given, made):
        trainer.train()
        assert "curvature/linear/mean" in trainer.state.log_history[0]
        assert AdaFisherConfig.from_pretrained(trainer.args.output_dir) == AdaFisherConfig().resolved()


def test_optimizer_cls_and_kwargs(tmp_path):
    model = llama()
    cls_and_kwargs = (adafisher_hf.AdaFisherW, {"lr": 1e-2, "network": model})
    args = arguments(tmp_path, optim="adamw_torch", optim_args=None)
    trainer = Trainer(model, args, train_dataset=data(), optimizer_cls_and_kwargs=cls_and_kwargs)
    before = weights(model)
    trainer.train()
    assert any(not torch.equal(before[name], value) for name, value in weights(model).items())


def test_the_optimizer_gets_the_loss_scaler(tmp_path, monkeypatch):
    attached = []
    monkeypatch.setattr(adafisher_hf.AdaFisher, "attach_scaler", lambda self, scaler: attached.append(scaler))
    trainer = AdaFisherTrainer(llama(), arguments(tmp_path), train_dataset=data())
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", enabled=False)
    trainer.train()
    assert attached == [trainer.accelerator.scaler]


def test_a_second_train_goes_on(tmp_path):
    trainer = AdaFisherTrainer(llama(), arguments(tmp_path), train_dataset=data())
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    trainer.train()
    inner = trainer.optimizer
    while not isinstance(inner, adafisher_hf.AdaFisher):
        inner = inner.optimizer
    assert inner is optimizer
    assert "curvature/linear/mean" in trainer.state.log_history[0]


def test_seq2seq(tmp_path):
    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    args = arguments(tmp_path, Seq2SeqTrainingArguments, predict_with_generate=True)
    trainer = AdaFisherSeq2SeqTrainer(
        T5ForConditionalGeneration(config), args, train_dataset=data(), eval_dataset=data(4)
    )
    trainer.train()
    assert "curvature/linear/mean" in trainer.state.log_history[0]
    generated = trainer.predict(data(4), max_new_tokens=3).predictions
    assert (len(generated), generated.ndim) == (4, 2)
    assert (tmp_path / CONFIG_NAME).exists()


@pytest.mark.parametrize("cls", [Trainer, AdaFisherTrainer])
def test_an_interrupted_run_resumes_to_the_same_end(tmp_path, cls):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise KeyboardInterrupt

    def trainer(folder, callbacks=None):
        args = arguments(folder, max_steps=8, save_strategy="steps", save_steps=3, seed=3)
        return cls(llama(), args, train_dataset=data(), callbacks=callbacks)

    whole = trainer(tmp_path / "whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "cut", [Interrupt]).train()
    assert [folder.name for folder in (tmp_path / "cut").glob("checkpoint-*")] == ["checkpoint-3"]
    resumed = trainer(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8
    assert_same(weights(whole.model), weights(resumed.model))
