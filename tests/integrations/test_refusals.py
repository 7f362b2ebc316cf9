"""Ways to distribute that would make the statistics wrong are refused before training."""

from __future__ import annotations

import dataclasses
import types

import pytest
from transformers import Trainer, TrainingArguments
from transformers.training_args import ParallelMode

from adafisher_hf import AdaFisherConfig
from adafisher_hf.integrations.refusals import refuse_unsupported


def arguments(folder, **changes):
    args = TrainingArguments(output_dir=str(folder), optim="adafisherw", use_cpu=True, report_to="none")
    for name, value in changes.items():
        object.__setattr__(args, name, value)
    return args


def fsdp(version):
    return {"fsdp": True, "fsdp_config": {"version": version}}


def deepspeed(stage):
    return {"deepspeed": "ds.json", "hf_deepspeed_config": types.SimpleNamespace(get_value=lambda *_: stage)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [(fsdp(1), "FSDP1 flattens them: use FSDP2"), (deepspeed(1), "DeepSpeed ZeRO flattens.*use FSDP2 or DDP")],
    ids=["fsdp", "deepspeed"],
)
def test_flattened_parameters(tmp_path, model, changes, message):
    with pytest.raises(ValueError, match=message):
        refuse_unsupported(arguments(tmp_path, **changes), model, AdaFisherConfig())


def test_deepspeed_of_accelerate_launch(tmp_path, model):
    launched = {"deepspeed_plugin": types.SimpleNamespace(zero_stage=2), "hf_deepspeed_config": None}
    with pytest.raises(ValueError, match="DeepSpeed ZeRO flattens"):
        refuse_unsupported(arguments(tmp_path, **launched), model, AdaFisherConfig())


def test_fsdp1_of_accelerate_launch(tmp_path, model, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP1 flattens"):
        refuse_unsupported(arguments(tmp_path), model, AdaFisherConfig())
    monkeypatch.setenv("FSDP_VERSION", "2")
    refuse_unsupported(arguments(tmp_path), model, AdaFisherConfig())


def test_options_that_need_all_rows_or_one_process(tmp_path, model, monkeypatch):
    rotated = AdaFisherConfig(structure="kronecker", second_moment="rotated")
    refuse_unsupported(arguments(tmp_path), model, rotated)
    with pytest.raises(ValueError, match="rotated does not work with FSDP2: use second_moment=factors"):
        refuse_unsupported(arguments(tmp_path, **fsdp(2)), model, rotated)
    with pytest.raises(ValueError, match="state_dtype=int8 keeps the momentum alone in 8 bits"):
        refuse_unsupported(arguments(tmp_path), model, dataclasses.replace(rotated, state_dtype="int8"))
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match="one process: use mode='calibrated'"):
        refuse_unsupported(arguments(tmp_path), model, AdaFisherConfig(mode="reference"))


def test_data_parallel(tmp_path, model, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "parallel_mode", ParallelMode.NOT_DISTRIBUTED)
    with pytest.raises(ValueError, match="DataParallel: start one process a GPU"):
        refuse_unsupported(arguments(tmp_path), model, AdaFisherConfig())


def test_tensor_parallel_through_the_trainer(tmp_path, model):
    trainer = Trainer(model, arguments(tmp_path))
    model._tp_size = 2
    with pytest.raises(ValueError, match="tensor parallelism.*without tp_plan"):
        trainer.create_optimizer()


@pytest.mark.parametrize(
    ("estimator", "changes", "message"),
    [
        ("improved", {"use_liger_kernel": True}, "leave use_liger_kernel out"),
        ("sampled", {"use_liger_kernel": True}, "leave use_liger_kernel out"),
        ("improved", {"torch_compile": True}, "leave torch_compile out"),
        ("sampled", {"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "set use_reentrant=False"),
    ],
)
def test_logits_that_an_estimator_cannot_see(tmp_path, model, estimator, changes, message):
    args = arguments(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"estimator='{estimator}': .*{message}"):
        refuse_unsupported(args, model, AdaFisherConfig(estimator=estimator))
    refuse_unsupported(args, model, AdaFisherConfig())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_grad_norm": 1.0}, "max_grad_norm=1 clips .*: set max_grad_norm=0"),
        ({"max_grad_norm": 0.0, "gradient_accumulation_steps": 2}, "set gradient_accumulation_steps=1"),
        ({"max_grad_norm": 0.0, "fp16": True}, "use float32 or bf16"),
        ({"max_grad_norm": 0.0, **fsdp(2)}, "train in one process"),
    ],
)
def test_what_needs_all_gradients_at_once(tmp_path, model, changes, message):
    args = arguments(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"gradient_release=True: .*{message}"):
        refuse_unsupported(args, model, AdaFisherConfig(gradient_release=True))


def test_nothing_else_is_refused(tmp_path, model):
    refuse_unsupported(arguments(tmp_path), model, AdaFisherConfig())
    refuse_unsupported(arguments(tmp_path, **deepspeed(0)), model, AdaFisherConfig())
    refuse_unsupported(arguments(tmp_path, **fsdp(2)), model, AdaFisherConfig())
