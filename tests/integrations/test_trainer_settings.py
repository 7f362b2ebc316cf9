"""Settings of the Trainer that must not be seen in the statistics."""

from __future__ import annotations

import pytest
import torch
from transformers import DataCollatorWithFlattening, Trainer, TrainerCallback, TrainingArguments

import adafisher_hf
from tests.models import llama
from tests.test_invariance import STRUCTURES


def rows(count=48, length=8):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 64, (count, length), generator=generator)
    return [{"input_ids": row, "labels": row} for row in ids]


def padded_rows():
    """Rows of different lengths, so that the loss is a mean over different numbers of tokens.

    Enough of them for factors of full rank: where eigenvalues coincide, rounding alone decides on the eigenvectors.
    """
    lengths = [9 + i % 8 for i in range(48)]
    return [
        {
            "input_ids": torch.cat([row["input_ids"][:n], torch.zeros(16 - n, dtype=torch.long)]),
            "labels": torch.cat([row["labels"][:n], torch.full((16 - n,), -100)]),
            "attention_mask": (torch.arange(16) < n).long(),
        }
        for n, row in zip(lengths, rows(length=16), strict=True)
    ]


def arguments(folder, **changes):
    settings = {
        "output_dir": str(folder), "optim": "adafisherw", "optim_args": "update_warmup=3,update_interval=2",
        "learning_rate": 1e-2, "max_steps": 5, "per_device_train_batch_size": 8, "save_strategy": "no",
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, **changes,
    }  # fmt: skip
    return TrainingArguments(**settings)


def trained(folder, data=None, collator=None, **changes):
    args = arguments(folder, **changes)
    trainer = Trainer(llama().double(), args, train_dataset=data or rows(), data_collator=collator)
    trainer.train()
    return trainer


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def adafisher(trainer):
    optimizer = trainer.optimizer
    while not isinstance(optimizer, adafisher_hf.AdaFisher):
        optimizer = optimizer.optimizer
    return optimizer


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "rotated"])
@pytest.mark.parametrize("data", [rows, padded_rows])
def test_accumulation_changes_nothing(tmp_path, structure, data):
    knobs = "".join(f",{key}={value}" for key, value in STRUCTURES[structure].items())
    settings = dict(data=data(), optim_args=f"update_warmup=3,update_interval=2{knobs}")
    whole = trained(tmp_path, **settings)
    for steps in (2, 4):
        size = 8 // steps
        parts = trained(tmp_path, gradient_accumulation_steps=steps, per_device_train_batch_size=size, **settings)
        torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-6, atol=1e-9)


def test_clipping_is_not_seen_by_the_hooks(tmp_path):
    """The hooks see δ before it is clipped, and F̂ would not care."""
    clipped, free = (trained(tmp_path, max_steps=1, max_grad_norm=norm) for norm in (1e-3, 0.0))
    for p, q in zip(clipped.model.parameters(), free.model.parameters(), strict=True):
        torch.testing.assert_close(adafisher(clipped).curvature(p), adafisher(free).curvature(q), rtol=1e-9, atol=1e-12)


def test_auto_find_batch_size_starts_over_cleanly(tmp_path):
    """The first attempt runs out of memory in the middle of training; hooks are not doubled by the second."""

    class OutOfMemory(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if kwargs["model"].training and state.train_batch_size == 8 and state.global_step == 2:
                raise RuntimeError("CUDA out of memory.")

    args = arguments(tmp_path, auto_find_batch_size=True)
    trainer = Trainer(llama().double(), args, train_dataset=rows(), callbacks=[OutOfMemory])
    trainer.train()
    assert trainer.state.train_batch_size < 8
    assert {len(module._forward_hooks) for module in trainer.model.modules()} <= {0, 1}
    optimizer = adafisher(trainer)
    assert optimizer.param_groups[0]["step"] >= trainer.state.global_step
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_packed_batches_count_every_token(tmp_path):
    """DataCollatorWithFlattening joins the rows of a batch to one; position_ids tell them apart."""
    data = [{"input_ids": row["input_ids"][: 3 + i % 6].tolist()} for i, row in enumerate(rows())]
    tokens = []
    model = llama().double()
    args = arguments(tmp_path, max_steps=1)
    collator = DataCollatorWithFlattening()
    trainer = Trainer(model, args, train_dataset=data, data_collator=collator)
    trainer.create_optimizer()
    optimizer = adafisher(trainer)
    refresh = optimizer._refresh

    def counted(blocks):
        tokens.extend(tap.sums.rows.item() for tap in optimizer._blocks._taps.values() if tap.sums is not None)
        refresh(blocks)

    optimizer._refresh = counted
    seen = []
    model.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].shape), with_kwargs=True)
    trainer.train()
    assert seen[0][0] == 1
    assert set(tokens) == {float(seen[0][1])}
    assert len(tokens) == len([m for m in model.modules() if m._parameters])
