"""The plain Trainer on two ranks ends where one process ends, checkpoints and resumes included."""

from __future__ import annotations

import pytest
import torch
from transformers import Trainer, TrainingArguments

import adafisher_hf  # noqa: F401
from tests.distributed.ranks import run_ranks
from tests.models import llama

STEPS = 6


def dataset():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 64, (48, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def train(folder, per_device, optim_args, accumulation=1, resume=False, max_steps=STEPS):
    args = TrainingArguments(
        output_dir=str(folder),
        optim="adafisherw",
        optim_args=f"update_warmup=3,update_interval=2,{optim_args}",
        learning_rate=1e-2,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        max_steps=max_steps,
        save_steps=3,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        seed=3,
    )
    trainer = Trainer(llama().double(), args, train_dataset=dataset())
    trainer.train(resume_from_checkpoint=resume)
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def on_rank(rank, folder, optim_args):
    whole = train(f"{folder}/whole", 4, optim_args)
    accumulated = train(f"{folder}/accumulated", 2, optim_args, accumulation=2)
    resumed = train(f"{folder}/alone", 4, optim_args, resume=True)
    return whole, accumulated, resumed


@pytest.mark.parametrize(
    "optim_args",
    [
        "structure=diagonal",
        "structure=kronecker,token_stride=1,basis_interval=2",
        "structure=orthogonal,token_stride=1",
    ],
)
def test_two_ranks_follow_one_process(tmp_path, optim_args):
    alone = train(tmp_path / "alone", 8, optim_args)
    (tmp_path / "alone/checkpoint-6").rename(tmp_path / "last")  # the ranks resume from step 3
    for whole, accumulated, resumed in run_ranks(2, on_rank, str(tmp_path), optim_args):
        torch.testing.assert_close(whole, alone, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(accumulated, alone, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(resumed, alone, rtol=1e-6, atol=1e-9)
