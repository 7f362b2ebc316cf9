"""Ways to distribute that would make the statistics wrong are refused before training."""

from __future__ import annotations

import types

import pytest
from transformers import Trainer, TrainingArguments
from transformers.training_args import ParallelMode

from adafisher_hf.integrations.refusals import refuse_unsupported


def arguments(folder, **changes):
    args = TrainingArguments(output_dir=str(folder), optim="adafisherw", use_cpu=True, report_to="none")
    for name, value in changes.items():
        object.__setattr__(args, name, value)
    return args


def deepspeed(stage):
    return {"deepspeed": "ds.json", "hf_deepspeed_config": types.SimpleNamespace(get_value=lambda *_: stage)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"fsdp": True}, "'adafisherw' does not support FSDP yet: use DDP"), (deepspeed(1), "DeepSpeed ZeRO flattens")],
    ids=["fsdp", "deepspeed"],
)
def test_sharded_optimizers(tmp_path, model, changes, message):
    with pytest.raises(ValueError, match=message):
        refuse_unsupported(arguments(tmp_path, **changes), model)


def test_data_parallel(tmp_path, model, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "parallel_mode", ParallelMode.NOT_DISTRIBUTED)
    with pytest.raises(ValueError, match="DataParallel: start one process a GPU"):
        refuse_unsupported(arguments(tmp_path), model)


def test_tensor_parallel_through_the_trainer(tmp_path, model):
    trainer = Trainer(model, arguments(tmp_path))
    model._tp_size = 2
    with pytest.raises(ValueError, match="tensor parallelism.*without tp_plan"):
        trainer.create_optimizer()


def test_nothing_else_is_refused(tmp_path, model):
    refuse_unsupported(arguments(tmp_path), model)
    refuse_unsupported(arguments(tmp_path, **deepspeed(0)), model)
