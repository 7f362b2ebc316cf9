"""Settings of the Trainer that must not be seen in the statistics."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithFlattening,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import adafisher_hf
from tests.models import llama
from tests.oracles.rows import assert_as_row_by_row, recorded
from tests.test_invariance import STRUCTURES

KNOBS = {"update_warmup": 3, "update_interval": 2}


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
    # Norms and softmax of the model are float32 whatever its dtype; their rounding would be multiplied, too.
    settings = dict(data=data(), optim_args=f"update_warmup=3,update_interval=2,vocabulary_lr=1{knobs}")
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


def ragged_rows():
    return [{"input_ids": row["input_ids"][row["attention_mask"].bool()]} for row in padded_rows()]


def padded(rows):
    ids = pad_sequence([row["input_ids"] for row in rows], batch_first=True, padding_value=0)
    mask = pad_sequence([torch.ones_like(row["input_ids"]) for row in rows], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask.bool(), -100)}


def optim_args(knobs):
    return ",".join(f"{key}={value}" for key, value in {**KNOBS, **knobs}.items())


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_batches_of_like_length_count_their_tokens_only(tmp_path, structure):
    knobs, model = STRUCTURES[structure], llama().double()
    args = arguments(
        tmp_path, train_sampling_strategy="group_by_length", max_grad_norm=0.0, lr_scheduler_type="constant",
        optim_args=optim_args(knobs),
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=ragged_rows(), data_collator=padded)
    steps = recorded(model)
    trainer.train()
    lengths = [[len(row) for row in step] for step in steps]
    assert len(steps) == 5 and all(step == sorted(step, reverse=True) for step in lengths)
    assert_as_row_by_row(model, adafisher(trainer), llama().double(), steps, **KNOBS, **knobs)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_packed_rows_have_the_statistics_of_the_rows_apart(tmp_path, structure):
    """DataCollatorWithFlattening joins the rows of a batch to one; position_ids tell them apart."""
    knobs, model = STRUCTURES[structure], llama(use_cache=False).double()
    args = arguments(tmp_path, max_grad_norm=0.0, lr_scheduler_type="constant", optim_args=optim_args(knobs))
    data = [{"input_ids": row["input_ids"].tolist()} for row in ragged_rows()]
    trainer = Trainer(model, args, train_dataset=data, data_collator=DataCollatorWithFlattening())
    steps = recorded(model)
    trainer.train()
    assert [len(rows) for rows in steps] == [8] * 5
    assert_as_row_by_row(model, adafisher(trainer), llama().double(), steps, **KNOBS, **knobs)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_out_of_memory_in_the_first_backward_pass_leaves_nothing(tmp_path, structure):
    """When layer 0's gradient comes, the layers above it have committed theirs already."""
    knobs, model = STRUCTURES[structure], llama().double()
    failed = []

    def out_of_memory(grad):
        if not failed:
            failed.append(True)
            raise RuntimeError("CUDA out of memory.")

    args = arguments(
        tmp_path, auto_find_batch_size=True, max_grad_norm=0.0, lr_scheduler_type="constant",
        optim_args=optim_args(knobs),
    )  # fmt: skip
    trainer = Trainer(model, args, train_dataset=ragged_rows(), data_collator=padded)
    model.model.layers[0].register_forward_hook(
        lambda module, args, output: (
            (output if torch.is_tensor(output) else output[0]).register_hook(out_of_memory) and None
        )
    )
    steps = recorded(model)
    trainer.train()
    assert failed and [len(rows) for rows in steps] == [8] + [7] * 5
    assert adafisher(trainer).param_groups[0]["step"] == 5
    assert_as_row_by_row(model, adafisher(trainer), llama().double(), steps[1:], **KNOBS, **knobs)


@pytest.mark.parametrize("accepts", [True, False])
def test_a_loss_that_knows_the_number_of_items_and_one_that_does_not(tmp_path, accepts):
    """Without num_items_in_batch the mean losses of micro-batches are averaged: the same for rows of one length."""
    ends = []
    for steps in (1, 4):
        args = arguments(
            tmp_path, gradient_accumulation_steps=steps, per_device_train_batch_size=8 // steps, max_grad_norm=0.0
        )
        trainer = Trainer(llama().double(), args, train_dataset=rows())
        trainer.model_accepts_loss_kwargs = accepts
        trainer.train()
        ends.append(trainer)
    torch.testing.assert_close(weights(ends[0]), weights(ends[1]), rtol=1e-6, atol=1e-9)
    for p, q in zip(ends[0].model.parameters(), ends[1].model.parameters(), strict=True):
        torch.testing.assert_close(
            adafisher(ends[0]).curvature(p), adafisher(ends[1]).curvature(q), rtol=1e-6, atol=1e-9
        )


SUMMED = pytest.mark.xfail(
    reason="BERT looks its positions up once for a whole batch, so their δ comes summed over the rows of a micro-batch"
)


@pytest.mark.parametrize("positions", [pytest.param("once a batch", marks=SUMMED), "once a row"])
def test_accumulated_classification_is_that_of_whole_batches(tmp_path, positions):
    """A classifier's loss is the mean over rows, and not divided by the number of micro-batches."""
    config = BertConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    data = [{**row, "labels": torch.tensor(i % 2)} for i, row in enumerate(rows())]
    if positions == "once a row":
        data = [{**row, "position_ids": torch.arange(8)} for row in data]
    ends = []
    for steps in (1, 2, 4):
        torch.manual_seed(0)
        args = arguments(
            tmp_path, gradient_accumulation_steps=steps, per_device_train_batch_size=8 // steps, max_grad_norm=0.0
        )
        trainer = Trainer(BertForSequenceClassification(config).double(), args, train_dataset=data)
        trainer.train()
        ends.append(trainer)
    for other in ends[1:]:
        torch.testing.assert_close(weights(other), weights(ends[0]), rtol=1e-5, atol=1e-8)
