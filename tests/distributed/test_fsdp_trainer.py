"""The plain Trainer with FSDP2: one process's trajectory, and checkpoints that other numbers of ranks go on from."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from adafisher_hf import AdaFisherTrainer
from tests.distributed.fsdp_on_cpu import allow_fsdp_on_cpu
from tests.distributed.ranks import run_ranks
from tests.distributed.test_trainer import dataset
from tests.models import llama

BATCH = 8
LAYERS = {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
KRONECKER = "structure=kronecker,token_stride=1,basis_interval=2"

# What is different from two ranks with a step of one micro-batch each, and whether one process is different as well.
SETTINGS = {
    "whole": {},
    "layers": {"fsdp_config": LAYERS},
    "kept": {"fsdp_config": {**LAYERS, "reshard_after_forward": False}},
    "checkpointing": {"fsdp_config": {**LAYERS, "activation_checkpointing": True}},
    "accumulated": {"accumulation": 2, "fsdp_config": LAYERS},
    "kronecker": {"optim_args": KRONECKER, "fsdp_config": LAYERS},
    "LoRA": {"lora": True, "fsdp_config": LAYERS},
}


def make_model(lora, dtype):
    model = llama().to(dtype)
    if lora:
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    return model.to(dtype)


def train(
    folder,
    ranks,
    optim_args="",
    fsdp_config=None,
    steps=4,
    resume=False,
    accumulation=1,
    lora=False,
    cls=Trainer,
    callbacks=(),
    **more,
):
    fsdp = {} if fsdp_config is None else {"fsdp": True, "fsdp_config": {"version": 2, **fsdp_config}}
    args = TrainingArguments(
        output_dir=str(folder),
        optim="adafisherw",
        optim_args=f"update_warmup=3,update_interval=2,{optim_args}".rstrip(","),
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        per_device_train_batch_size=BATCH // ranks // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        save_strategy="steps" if more.pop("save", False) else "no",
        save_steps=2,
        logging_steps=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        seed=3,
        **fsdp,
        **more,
    )
    dtype = torch.float32 if args.bf16 else torch.float64
    trainer = cls(make_model(lora, dtype), args, train_dataset=dataset(), callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    weights = [p.full_tensor() if fsdp else p.detach() for p in trainer.model.parameters()]
    return torch.cat([p.flatten() for p in weights]), trainer.state.log_history


def on_two_ranks(rank, folder):
    allow_fsdp_on_cpu()
    results = {}
    for name, setting in SETTINGS.items():
        results[name], _ = train(f"{folder}/{name}", 2, **{"fsdp_config": {}, **setting})
    _, results["logs"] = train(f"{folder}/logs", 2, fsdp_config=LAYERS, cls=AdaFisherTrainer)
    _, results["bf16 logs"] = train(f"{folder}/bf16", 2, fsdp_config=LAYERS, bf16=True)
    return results


@pytest.mark.timeout(600)
def test_two_ranks_follow_one_process(tmp_path):
    results = run_ranks(2, on_two_ranks, str(tmp_path), timeout=500)
    for name, setting in SETTINGS.items():
        single = {key: value for key, value in setting.items() if key not in ("fsdp_config", "accumulation")}
        alone, _ = train(tmp_path / "alone", 1, **single)
        for result in results:
            torch.testing.assert_close(result[name], alone, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    _, alone = train(tmp_path / "alone", 1, cls=AdaFisherTrainer)
    for expected, found in zip(alone[:-1], results[0]["logs"][:-1], strict=True):
        # Not the mean: it carries the scale of the loss, which is that of a rank.
        curvature = [key for key in expected if key.startswith("curvature/") and not key.endswith("/mean")]
        assert curvature and {key: found[key] for key in curvature} == pytest.approx(
            {key: expected[key] for key in curvature}, rel=1e-5
        )
    losses = [log["loss"] for log in results[0]["bf16 logs"] if "loss" in log]
    assert losses == pytest.approx([log["loss"] for log in alone if "loss" in log], rel=2e-2)


def go_on(rank, ranks, folder, kind, steps, resume, optim_args):
    allow_fsdp_on_cpu()
    config = {"state_dict_type": kind, **LAYERS}
    return train(folder, ranks, optim_args, config, steps=steps, resume=resume, save=True)[0]


def elastic(folder, kind, optim_args, numbers):
    """Trains two steps on each number of ranks, every time from the checkpoint that the others have left."""
    alone, _ = train(folder / "alone", 1, optim_args, steps=2 * len(numbers))
    for i, ranks in enumerate(numbers):
        shared, steps = str(folder / "shared"), 2 * (i + 1)
        results = run_ranks(ranks, go_on, ranks, shared, kind, steps, i > 0, optim_args, timeout=400)
    for result in results:
        torch.testing.assert_close(result, alone, rtol=1e-6, atol=1e-9)


def test_half_as_many_ranks_go_on(tmp_path):
    elastic(tmp_path, "SHARDED_STATE_DICT", KRONECKER, (2, 1))


@pytest.mark.slow
@pytest.mark.parametrize("optim_args", ["structure=diagonal", KRONECKER])
@pytest.mark.parametrize("kind", ["SHARDED_STATE_DICT", "FULL_STATE_DICT"])
def test_other_numbers_of_ranks_go_on(tmp_path, kind, optim_args):
    elastic(tmp_path, kind, optim_args, (4, 2, 1, 4))
