"""SmolLM2-135M: going on with the news, and writing what a text becomes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from peft import TaskType
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase, default_data_collator

from data.bbc import load_distinct
from data.phonemes import load_phonemes
from data.rewritten import Rewritten
from data.split import hold_out
from data.text import TEXT, Texts
from data.tokens import to_blocks
from data.verses import load_verses
from metrics.token_accuracy import IGNORED
from modeling import ModelArguments, load_config, load_model, load_tokenizer
from packaged import SMOLLM2

from .adapters import adapted
from .material import HELD_OUT, Material

BECOMES = " =>"


def news(block_size: int, evaluated: int, lora_r: int) -> Material:
    """Blocks of BBC News."""
    tokenizer, make_model = _smollm2(lora_r)
    parts = hold_out([article.text for article in load_distinct()], HELD_OUT, HELD_OUT)

    def blocks(documents: list[str], limit: int | None = None) -> Dataset:
        return to_blocks(Texts(Dataset.from_dict({TEXT: documents})), tokenizer, block_size, limit=limit)

    evaluation, tuning, training = parts
    splits = {"train": blocks(training), "tune": blocks(tuning, evaluated), "eval": blocks(evaluation, evaluated)}
    return Material(splits, default_data_collator, make_model)


def phonemes(evaluated: int, lora_r: int) -> Material:
    """English words, and how they sound."""
    return _rewriting(load_phonemes(evaluated), lora_r)


def verses(evaluated: int, lora_r: int) -> Material:
    """Verses of the King James Bible, and the same in Basic English."""
    return _rewriting(load_verses(evaluated), lora_r)


def _rewriting(splits: Rewritten, lora_r: int) -> Material:
    tokenizer, make_model = _smollm2(lora_r)
    end = tokenizer.eos_token_id

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        sources = tokenizer([f"{text}{BECOMES}" for text in batch["source"]])["input_ids"]
        targets = [[*ids, end] for ids in tokenizer([f" {text}" for text in batch["target"]])["input_ids"]]
        pairs = list(zip(sources, targets, strict=True))
        return {
            "input_ids": [[*source, *target] for source, target in pairs],
            "labels": [[IGNORED] * len(source) + target for source, target in pairs],
        }

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        columns = {name: [torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels")}
        padded = {name: pad_sequence(columns[name], batch_first=True, padding_value=IGNORED) for name in columns}
        seen = padded["input_ids"] != IGNORED
        return {**padded, "input_ids": padded["input_ids"].masked_fill(~seen, end), "attention_mask": seen.long()}

    encoded = {name: rows.map(encode, batched=True, remove_columns=rows.column_names) for name, rows in splits.items()}
    return Material(encoded, collate, make_model)


def _smollm2(lora_r: int) -> tuple[PreTrainedTokenizerBase, Callable[[], nn.Module]]:
    arguments = ModelArguments(model_name_or_path=SMOLLM2)
    tokenizer = load_tokenizer(arguments, None)
    # Reading it takes longer than copying it.
    base: PreTrainedModel = load_model(arguments, load_config(arguments, tokenizer), tokenizer)
    return tokenizer, lambda: adapted(copy.deepcopy(base), lora_r, TaskType.CAUSAL_LM)
