"""BBC News articles and their headlines."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from .bbc import Article, load_distinct
from .limits import LimitArguments, first
from .split import hold_out

EVALUATED = 0.1


def load_headlines(limits: LimitArguments) -> tuple[Dataset, Dataset]:
    """Training and evaluation articles, with columns body and headline."""
    evaluation, training = hold_out(load_distinct(), EVALUATED)
    return first(_rows(training), limits.max_train_samples), first(_rows(evaluation), limits.max_eval_samples)


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, source_length: int, target_length: int) -> Dataset:
    """Cuts body and headline to these lengths; the headline's end is marked, so that it can be generated."""

    def encode_batch(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = tokenizer(batch["body"], truncation=True, max_length=source_length)
        headlines = tokenizer(batch["headline"], truncation=True, max_length=target_length - 1)["input_ids"]
        return {**encoded, "labels": [[*ids, tokenizer.eos_token_id] for ids in headlines]}

    return rows.map(encode_batch, batched=True, remove_columns=rows.column_names)


def _rows(articles: Sequence[Article]) -> Dataset:
    return Dataset.from_dict(
        {"headline": [article.headline for article in articles], "body": [article.body for article in articles]}
    )
