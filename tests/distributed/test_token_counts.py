"""Ranks whose batches have different numbers of tokens: average_tokens_across_devices, and the statistics with it."""

from __future__ import annotations

import torch
from transformers import Trainer, TrainingArguments

from tests.distributed.ranks import run_ranks
from tests.integrations.test_trainer_settings import adafisher, optim_args, padded, ragged_rows
from tests.models import llama
from tests.test_invariance import STRUCTURES


def train(folder, per_device, structure, accumulation=1):
    """Rows in pairs of a long and a short one, so that one rank gets all long ones."""
    args = TrainingArguments(
        output_dir=str(folder), optim="adafisherw", optim_args=optim_args(STRUCTURES[structure]), learning_rate=1e-2,
        per_device_train_batch_size=per_device, gradient_accumulation_steps=accumulation, max_steps=5,
        average_tokens_across_devices=True, max_grad_norm=1.0, train_sampling_strategy="sequential",
        save_strategy="no", use_cpu=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    long_first = sorted(ragged_rows(), key=lambda row: -len(row["input_ids"]))
    data = [row for pair in zip(long_first[:24], long_first[24:], strict=True) for row in pair]
    by_rank = [data[start + side] for start in range(0, 48, 8) for side in (0, 2, 4, 6, 1, 3, 5, 7)]
    trainer = Trainer(llama().double(), args, train_dataset=by_rank, data_collator=padded)
    trainer.train()
    theta = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    weights = [p for p in trainer.model.parameters() if p.dim() > 1]
    curvature = torch.cat([adafisher(trainer).curvature(p).flatten() for p in weights])
    return theta, curvature


def on_rank(rank, folder):
    return [
        [train(folder, 4, structure), train(folder, 2, structure, accumulation=2)]
        for structure in ("diagonal", "kronecker")
    ]


def test_ranks_with_more_and_fewer_tokens_follow_one_process(tmp_path):
    alone = [train(tmp_path, 8, structure) for structure in ("diagonal", "kronecker")]
    for rank in run_ranks(2, on_rank, str(tmp_path)):
        for (theta, curvature), runs in zip(alone, rank, strict=True):
            for other_theta, other_curvature in runs:
                torch.testing.assert_close(other_theta, theta, rtol=1e-5, atol=1e-7)
                if theta is alone[0][0]:  # that of the other structure is in its own basis
                    torch.testing.assert_close(other_curvature, curvature, rtol=1e-5, atol=1e-7)
