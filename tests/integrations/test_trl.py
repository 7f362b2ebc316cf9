"""TRL's trainers: the flag alone, and the statistics of the tokens that are trained on."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from adafisher_hf import AdaFisherW
from data.tokens import train_tokenizer
from tests.integrations.test_trainer_settings import KNOBS, adafisher, optim_args
from tests.models import llama
from tests.oracles.rows import assert_as_row_by_row, assert_same_training, recorded
from tests.test_invariance import STRUCTURES

WORDS = "the cat sees a house by the river and a dog sees the cat in the house".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS)], 300)


def sentences(count=40):
    return [" ".join(WORDS[(3 * i + j) % len(WORDS)] for j in range(4 + i % 5)) for i in range(count)]


def arguments(folder, cls, **changes):
    settings = {
        "output_dir": str(folder), "optim": "adafisherw", "optim_args": optim_args({}), "learning_rate": 1e-2,
        "max_steps": 5, "per_device_train_batch_size": 8, "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
        "max_length": 32, "bf16": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", **changes,
    }  # fmt: skip
    return cls(**settings)


def untied():
    """TRL multiplies by the head's weight where no hook can see it: a frozen head leaves the rest to be compared."""
    model = llama(vocab_size=300, use_cache=False, tie_word_embeddings=False).double()
    model.lm_head.requires_grad_(False)
    return model


def sft(folder, tokenizer, model, **changes):
    data = Dataset.from_dict({"text": sentences()})
    return SFTTrainer(model, arguments(folder, SFTConfig, **changes), train_dataset=data, processing_class=tokenizer)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_sft_has_the_statistics_of_its_rows(tmp_path, tokenizer, packing, structure):
    knobs, model = {**STRUCTURES[structure], "vocabulary_lr": 1.0}, untied()  # rounding would be multiplied too
    trainer = sft(tmp_path, tokenizer, model, packing=packing, optim_args=optim_args(knobs))
    steps = recorded(model)
    trainer.train()
    assert len(steps) == 5 and all(len(rows) > 8 if packing else len(rows) == 8 for rows in steps)
    assert_as_row_by_row(model, adafisher(trainer), untied(), steps, **KNOBS, **knobs)


def test_a_head_that_is_trained_is_passed_by_and_this_is_said(tmp_path, tokenizer, caplog):
    trainer = sft(tmp_path, tokenizer, llama(vocab_size=300).double(), max_steps=1)
    trainer.train()
    assert "lm_head did not run, but got a gradient" in caplog.text


def log_probability(model, batch):
    """Of each row's completion, the logits taken from the model as anybody would."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    tokens = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    return (tokens * batch["completion_mask"][:, 1:]).sum(-1)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_dpo_measures_the_policy_alone(tmp_path, tokenizer, structure):
    """The oracle is a loop with DPO's loss written out; the reference comes in without any statistics."""
    knobs, model, reference = STRUCTURES[structure], untied(), untied()
    texts = sentences()
    data = {"prompt": texts, "chosen": [" by the river"] * len(texts), "rejected": texts[7:] + texts[:7]}
    trainer = DPOTrainer(
        model,
        ref_model=reference,
        args=arguments(tmp_path, DPOConfig, beta=0.5, optim_args=optim_args(knobs)),
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
    )
    batches = []
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, **kwargs: (batches.append(dict(inputs)), compute_loss(model, inputs))[
        1
    ]
    trainer.train()

    other, reference = untied().train(), untied()
    optimizer = AdaFisherW(other, lr=1e-2, **KNOBS, **knobs)
    for batch in batches:
        optimizer.zero_grad()
        with torch.no_grad():
            expected = log_probability(reference, batch)
        chosen, rejected = (log_probability(other, batch) - expected).chunk(2)
        (-logsigmoid(0.5 * (chosen - rejected))).mean().backward()
        optimizer.step()
    assert len(batches) == 5
    assert_same_training(model, adafisher(trainer), other, optimizer)
