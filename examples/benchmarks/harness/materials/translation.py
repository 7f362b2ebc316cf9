"""A small T5 from random weights: headlines, and how words sound."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, T5ForConditionalGeneration

from data.headlines import encode as encode_headlines
from data.headlines import load_headlines
from data.phonemes import load_phonemes
from data.tokens import train_tokenizer
from run_seq2seq import HeadlineArguments, small_t5

from .material import Material, with_tuning

SOUNDS = 512  # tokens: letters, phonemes, and frequent groups of them


def headlines(**arguments: int) -> Material:
    """BBC News articles, and their headlines."""
    sizes = HeadlineArguments(**arguments)
    splits = with_tuning(*load_headlines(sizes))
    tokenizer = train_tokenizer(text for article in splits["train"] for text in article.values())
    config = small_t5(sizes, tokenizer)
    encoded = {
        name: encode_headlines(rows, tokenizer, sizes.max_source_length, sizes.max_target_length)
        for name, rows in splits.items()
    }
    return Material(encoded, DataCollatorForSeq2Seq(tokenizer), lambda: T5ForConditionalGeneration(config))


def phonemes(evaluated: int, d_model: int) -> Material:
    """English words, and how they sound."""
    splits = load_phonemes(evaluated)
    tokenizer = train_tokenizer((text for row in splits["train"] for text in row.values()), SOUNDS)
    config = small_t5(HeadlineArguments(d_model=d_model), tokenizer)

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        targets = tokenizer(batch["target"])["input_ids"]
        return {**tokenizer(batch["source"]), "labels": [[*ids, tokenizer.eos_token_id] for ids in targets]}

    def encoded(rows: Dataset) -> Dataset:
        return rows.map(encode, batched=True, remove_columns=rows.column_names)

    return Material(
        {name: encoded(rows) for name, rows in splits.items()},
        DataCollatorForSeq2Seq(tokenizer),
        lambda: T5ForConditionalGeneration(config),
    )
