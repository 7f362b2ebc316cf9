"""Each member by its name: training, resuming, accumulation, config, card, memory, and one error before training."""

from __future__ import annotations

import json
import math
import types

import pytest
import torch
from transformers import GPT2Config, LlamaForCausalLM, Trainer, TrainerCallback
from transformers.training_args import OptimizerNames, ParallelMode

import adafisher_hf
from adafisher_hf import SOAP, AdaFisherTrainer, AdamQLR, CurvatureCallback, FAdam, Muon, SIRFShampoo
from adafisher_hf.cli import main
from adafisher_hf.compat import add_enum_member, remove_enum_member
from adafisher_hf.integrations.entries import OPTIMIZERS, entry_of_name
from tests.integrations.test_refusals import deepspeed, fsdp
from tests.integrations.test_trainer import arguments, assert_same, data, weights
from tests.models import llama

CLASSES = {"fadam": FAdam, "sirfshampoo": SIRFShampoo, "adamqlr": AdamQLR, "muon": Muon, "soap": SOAP}
OPTIONS = {
    "fadam": "clip=0.9",
    "sirfshampoo": "damping=0.01",
    "adamqlr": "damping=0.01",
    "muon": "momentum=0.8",
    "soap": "precondition_frequency=3",
}
every_name = pytest.mark.parametrize("name", CLASSES)


def settings(folder, name, **changes):
    defaults = {"optim": name, "optim_args": OPTIONS.get(name), "max_grad_norm": 0.0}
    return arguments(folder, **{**defaults, **changes})


def trained(folder, name, cls=Trainer, model=None, callbacks=None, resume=None, **changes):
    trainer = cls(model or llama(), settings(folder, name, **changes), train_dataset=data(), callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@every_name
@pytest.mark.parametrize("cls", [Trainer, AdaFisherTrainer])
def test_it_trains(tmp_path, name, cls):
    trainer = trained(tmp_path, name, cls, max_steps=20, logging_steps=10, max_grad_norm=1.0, learning_rate=2e-2)
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer) is CLASSES[name]
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0] - 0.1
    logged = [key for key in trainer.state.log_history[0] if "/" in key]
    assert logged == ([f"adamqlr/{key}" for key in ("lr", "damping", "rho")] if name == "adamqlr" else [])


@every_name
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, name):
    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise KeyboardInterrupt

    saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "seed": 3}
    whole = trained(tmp_path / "whole", name, **saving)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", name, callbacks=[Interrupt], **saving)
    assert_same(weights(whole.model), weights(trained(tmp_path / "cut", name, resume=True, **saving).model))


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "soap"])  # rounding decides its bases, see there
def test_micro_batches_are_one_batch(tmp_path, name):
    ends = []
    for parts in (1, 2):
        cut = dict(per_device_train_batch_size=4 // parts, gradient_accumulation_steps=parts)
        ends.append(weights(trained(tmp_path, name, model=llama().double(), **cut).model))
    # The models of transformers compute their losses in float32.
    tolerance = 1e-3 if name == "fadam" else 1e-4
    assert max((ends[0][key] - ends[1][key]).abs().max() for key in ends[0]) < tolerance


@every_name
def test_half_precision(tmp_path, name):
    for changes in (dict(bf16=True), dict(model=llama().bfloat16())):
        trainer = trained(tmp_path, name, **{"max_steps": 20, "logging_steps": 10, **changes})
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        assert losses[-1] < losses[0] - 0.1
        assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


@every_name
def test_config_and_card(tmp_path, name):
    trainer = trained(
        tmp_path, name, AdaFisherTrainer, save_strategy="steps", save_steps=2, callbacks=[CurvatureCallback]
    )
    entry, config = OPTIMIZERS[name], trainer.optimizer.optimizer.config
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        assert entry.config.from_pretrained(folder) == config == entry.config.from_optim_args(config.to_optim_args())
        assert (folder / f"{name}_config.json").exists()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    version, cls = adafisher_hf.__version__, CLASSES[name].__name__
    assert f"This model was trained with {cls} ([paper]({entry.paper})) of adafisher_hf {version} and" in card
    assert f"```bibtex\n{entry.citation}```" in card and f"- {name}\n" in card.split("---")[1]
    names = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    assert entry.config.from_optim_args(names["args"].optim_args) == config
    with pytest.raises(ValueError, match="unknown optim_args key 'dampin"):
        settings(tmp_path, name, optim_args="dampings=1")


def test_the_report_has_the_options(tmp_path):
    for name in CLASSES:
        trained(tmp_path / name, name, AdaFisherTrainer).save_state()
    assert main(["report", *(str(tmp_path / name) for name in CLASSES), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert all(key in page for key in ("eps2", "factor_lr", "damping_increase"))


def test_knobs_of_the_trainer_and_of_others(tmp_path):
    def made(name, **changes):
        return Trainer(llama(), settings(tmp_path, name, **changes), train_dataset=data()).create_optimizer().config

    betas = dict(adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-5)
    for name in ("fadam", "adamqlr", "muon", "soap"):
        config = made(name, **betas)
        assert (config.beta1, config.beta2, config.eps) == (0.8, 0.9, 1e-5)
        assert made(name, optim_args="beta2=0.5", **betas).beta2 == 0.5
    assert made("sirfshampoo", adam_beta1=0.8).momentum == 0.8
    assert made("muon", adam_beta1=0.8, optim_args=None).momentum == 0.95
    assert (made("soap").beta1, made("soap").beta2, made("soap", adam_beta2=0.9).shampoo_beta) == (0.95, 0.95, 0.9)
    with pytest.raises(
        ValueError, match="unknown optim_args key 'factor_lr', which is an option of SIRFShampoo \\(valid"
    ):
        settings(tmp_path, "fadam", optim_args="factor_lr=1")
    with pytest.raises(ValueError, match="'ns_steps', which is an option of Muon \\(valid"):
        settings(tmp_path, "soap", optim_args="ns_steps=3")
    with pytest.raises(ValueError, match="'max_precondition_dim', which is an option of SOAP \\(valid"):
        settings(tmp_path, "muon", optim_args="max_precondition_dim=9")
    with pytest.raises(ValueError, match="'lr_clip', which is an option of AdamQLR"):
        settings(tmp_path, "adafisherw", optim_args="lr_clip=1")
    with pytest.raises(ValueError, match="optim_args: lr_clip must be a number > 0, or none, got '0'"):
        settings(tmp_path, "adamqlr", optim_args="lr_clip=0")


def test_memory(tmp_path, capsys):
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=16)
    config.save_pretrained(tmp_path)
    assert main(["coverage", str(tmp_path), "--memory", "--json"]) == 0
    rows = {row["setting"]: row["bytes"] for row in json.loads(capsys.readouterr().out)["memory"]}
    model = adafisher_hf.cli.build_on_meta(str(tmp_path), "auto")
    shapes = [tuple(p.shape) for p in model.parameters()]
    counts = 4 * len(shapes)  # of steps
    assert rows["fadam"] == rows["adamqlr"] == rows["AdamW"] + counts
    factors = 2 * sum(4 * size**2 for shape in shapes for size in shape)
    assert rows["sirfshampoo"] == rows["AdamW"] / 2 + factors + counts
    hidden = 4 * sum(math.prod(row.shape) for row in adafisher_hf.coverage(model) if row.role == "hidden")
    assert rows["muon"] == rows["AdamW"] - hidden + counts
    assert rows["soap"] == rows["AdamW"] + 2 * sum(4 * size**2 for shape in shapes for size in shape if len(shape) > 1)


@every_name
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (fsdp(1), "FSDP1 flattens them: use FSDP2"),
        (deepspeed(1), "DeepSpeed ZeRO flattens them"),
        (
            {"deepspeed_plugin": types.SimpleNamespace(zero_stage=2), "hf_deepspeed_config": None},
            "DeepSpeed ZeRO flattens",
        ),
    ],
    ids=["fsdp1", "zero", "zero of accelerate"],
)
def test_other_shapes_are_refused(tmp_path, name, changes, message):
    args = settings(tmp_path, name)
    for key, value in changes.items():
        object.__setattr__(args, key, value)
    entry = OPTIMIZERS[name]
    with pytest.raises(ValueError, match=f"optim='{name}'.*{message}"):
        entry.check(args, llama(), entry.config_of(args))
    split = llama()
    split._tp_size = 2
    with pytest.raises(ValueError, match=f"optim='{name}' does not work with tensor parallelism"):
        entry.check(settings(tmp_path, name), split, entry.config_of(settings(tmp_path, name)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (fsdp(2), "no forward-mode product goes through FSDP2's gathers: use DDP"),
        ({"torch_compile": True}, "no forward-mode product goes through torch.compile"),
        ({"fp16": True}, "fp16 has a loss scaler, which skips steps: use float32 or bf16"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor makes the loss outside of the model"),
        ({"use_liger_kernel": True}, "Liger's fused losses have no logits"),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "reentrant checkpoints have no forward-mode"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_adamqlr_cannot_do_is_refused(tmp_path, changes, message):
    args = settings(tmp_path, "adamqlr")
    for key, value in changes.items():
        object.__setattr__(args, key, value)
    entry = OPTIMIZERS["adamqlr"]
    with pytest.raises(ValueError, match=f"optim='adamqlr': {message}"):
        entry.check(args, llama(), entry.config_of(args))


def test_data_parallel_is_refused_where_the_model_runs_again(tmp_path, monkeypatch):
    made = {name: settings(tmp_path, name) for name in CLASSES}
    monkeypatch.setattr(type(made["fadam"]), "parallel_mode", ParallelMode.NOT_DISTRIBUTED)
    for name, args in made.items():
        entry = OPTIMIZERS[name]
        if name == "adamqlr":
            with pytest.raises(ValueError, match="optim='adamqlr' does not work with DataParallel"):
                entry.check(args, llama(), entry.config_of(args))
        else:
            entry.check(args, llama(), entry.config_of(args))


def test_a_loss_outside_of_the_model_is_refused_at_the_first_step(tmp_path):
    def own_loss(outputs, labels, num_items_in_batch=None):
        return torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())

    trainer = Trainer(llama(), settings(tmp_path, "adamqlr"), train_dataset=data(), compute_loss_func=own_loss)
    before = weights(trainer.model)
    with pytest.raises(ValueError, match="the model returned none: pass labels to it"):
        trainer.train()
    assert_same(before, weights(trainer.model))


def test_adapters_and_smoothed_schedules(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.2, task_type="CAUSAL_LM")
    for name in CLASSES:
        model = peft.get_peft_model(llama(), config)
        trainer = trained(tmp_path, name, model=model, max_steps=6, lr_scheduler_type="cosine", warmup_steps=2)
        assert isinstance(model.get_base_model(), LlamaForCausalLM)
        states = [state for state in trainer.optimizer.optimizer.state.values() if state]
        assert len(states) == 8 and all(state.get("step", 6) == 6 for state in states)


def test_a_name_that_transformers_has_itself_is_left_to_it(tmp_path):
    """Should there be a Muon in transformers one day."""
    before = dict(OPTIMIZERS)
    adafisher_hf.unregister()
    add_enum_member(OptimizerNames, "muon")
    try:
        adafisher_hf.register()
        assert list(OPTIMIZERS) == [name for name in before if name != "muon"]
        args = settings(tmp_path, "muon", optim_args="anything goes")
        assert args.optim == OptimizerNames("muon") and entry_of_name(args.optim) is None
        assert settings(tmp_path, "soap").optim == "soap"
    finally:
        adafisher_hf.unregister()
        remove_enum_member(OptimizerNames, "muon")
        OPTIMIZERS.clear()
        OPTIMIZERS.update(before)
        adafisher_hf.register()
    assert type(Trainer(llama(), settings(tmp_path, "muon"), train_dataset=data()).create_optimizer()) is Muon
