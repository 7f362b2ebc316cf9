"""Problems of fine-tuning: the data and the models of the examples, with a third split to tune on.

The evaluation split is the examples' own; the tuning split is a tenth of their training data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    T5ForConditionalGeneration,
    ViTForImageClassification,
    default_data_collator,
)

from data.bbc import load_distinct
from data.digits import load_digits
from data.headlines import encode as encode_headlines
from data.headlines import load_headlines
from data.limits import LimitArguments
from data.split import hold_out
from data.text import TEXT, Texts
from data.tokens import to_blocks, train_tokenizer
from data.topics import load_topics
from lora import LoraArguments, with_adapters
from metrics.token_accuracy import IGNORED
from modeling import ModelArguments, load_config, load_model, load_tokenizer
from packaged import MINILM, SMOLLM2, locate
from run_classification import encode as encode_topics
from run_image_classification import VisionArguments, small_vit
from run_seq2seq import HeadlineArguments, small_t5

from .problem import Scores, Split

HELD_OUT = 0.1
EVALUATION_BATCH = 16


@dataclass(frozen=True)
class Material:
    """What a problem is made of: rows by split, how rows become a batch, and a model to start from."""

    splits: Mapping[str, Dataset]
    collate: Callable[[list[Any]], Mapping[str, Any]]
    make_model: Callable[[], nn.Module]


@dataclass(frozen=True)
class FineTuning:
    """A model of transformers that gives its own loss, on rows of a dataset.

    Attributes:
        prepare: makes the material; called with the ``sizes``, when it is needed.
        next_token: the prediction at a position is about the one after it.
    """

    name: str
    prepare: Callable[..., Material]
    batch_size: int
    sizes: Mapping[str, Any] = field(default_factory=dict)
    next_token: bool = False

    def describe(self) -> dict[str, Any]:
        return {"task": self.name, "batch_size": self.batch_size, **self.sizes}

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self._material.make_model().train()

    def batches(self, seed: int) -> Iterator[Mapping[str, Tensor]]:
        rows, generator = self._material.splits["train"], torch.Generator().manual_seed(seed)
        options: dict[str, Any] = {"collate_fn": self._material.collate, "generator": generator}
        loader = DataLoader(rows, self.batch_size, shuffle=True, drop_last=True, **options)
        while True:
            yield from loader

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return model(**batch).loss

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        """Means over all targets of the split: tokens, or whole examples where those have a class."""
        model.eval()
        loss = right = count = 0.0
        for batch in DataLoader(self._material.splits[split], EVALUATION_BATCH, collate_fn=self._material.collate):
            outputs = model(**batch)
            predictions, targets = outputs.logits.argmax(-1), batch["labels"]
            if self.next_token:
                predictions, targets = predictions[:, :-1], targets[:, 1:]
            counted = targets != IGNORED
            right += (predictions == targets)[counted].sum().item()
            loss += outputs.loss.item() * counted.sum().item()
            count += counted.sum().item()
        model.train()
        return Scores(loss / count, right / count)

    @cached_property
    def _material(self) -> Material:
        return self.prepare(**self.sizes)


def lora(block_size: int, evaluated: int, **adapters: Any) -> Material:
    """SmolLM2 with adapters, on blocks of BBC News."""
    arguments = ModelArguments(model_name_or_path=SMOLLM2)
    tokenizer = load_tokenizer(arguments, None)
    base = load_model(arguments, load_config(arguments, tokenizer), tokenizer)
    texts = hold_out([article.text for article in load_distinct()], HELD_OUT, HELD_OUT)

    def blocks(documents: list[str], limit: int | None = None) -> Dataset:
        return to_blocks(Texts(Dataset.from_dict({TEXT: documents})), tokenizer, block_size, limit=limit)

    evaluation, tuning, training = texts
    splits = {"train": blocks(training), "tune": blocks(tuning, evaluated), "eval": blocks(evaluation, evaluated)}
    return Material(
        splits, default_data_collator, lambda: with_adapters(copy.deepcopy(base), LoraArguments(**adapters))
    )


def topics(max_length: int) -> Material:
    """MiniLM with a new head, on the topics of BBC News."""
    splits = _with_tuning(*load_topics(LimitArguments()))
    source = locate(MINILM)
    tokenizer = AutoTokenizer.from_pretrained(source.name, **source.options)
    classes = splits["train"].features["label"].num_classes

    def make_model() -> nn.Module:
        return AutoModelForSequenceClassification.from_pretrained(source.name, num_labels=classes, **source.options)

    encoded = {
        name: encode_topics(rows, tokenizer, max_length, tokenizer.model_max_length) for name, rows in splits.items()
    }
    return Material(encoded, DataCollatorWithPadding(tokenizer), make_model)


def digits(**sizes: int) -> Material:
    """A small vision transformer from random weights, on scikit-learn's digits."""
    splits = _with_tuning(*load_digits(LimitArguments()))
    config = small_vit(VisionArguments(**sizes), splits["train"].features["labels"].names)
    return Material(splits, default_data_collator, lambda: ViTForImageClassification(config))


def headlines(**arguments: int) -> Material:
    """A small T5 from random weights, writing the headlines of BBC News articles."""
    sizes = HeadlineArguments(**arguments)
    splits = _with_tuning(*load_headlines(sizes))
    tokenizer = train_tokenizer(text for article in splits["train"] for text in article.values())
    config = small_t5(sizes, tokenizer)
    encoded = {
        name: encode_headlines(rows, tokenizer, sizes.max_source_length, sizes.max_target_length)
        for name, rows in splits.items()
    }
    return Material(encoded, DataCollatorForSeq2Seq(tokenizer), lambda: T5ForConditionalGeneration(config))


def _with_tuning(train: Dataset, evaluation: Dataset) -> dict[str, Dataset]:
    parts = train.train_test_split(HELD_OUT, seed=0)
    return {"train": parts["train"], "tune": parts["test"], "eval": evaluation}
