"""What is learned. The splits tune and eval are disjoint: a learning rate is never chosen on what is reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from data.bbc import load_articles
from data.split import hold_out
from data.text import TEXT, Texts
from data.tokens import VOCABULARY, to_blocks, train_tokenizer
from modeling import small_llama

Split = Literal["tune", "eval"]


class Scores(NamedTuple):
    """The mean loss on a split that is not trained on, and where it is counted the share of right predictions."""

    loss: float
    accuracy: float | None = None


class Problem(Protocol):
    """Everything a run needs to know of what it learns."""

    def describe(self) -> dict[str, Any]:
        """What a result depends on, as JSON; runs with different descriptions are different runs."""

    def model(self, seed: int) -> nn.Module: ...

    def batches(self, seed: int) -> Iterator[Any]:
        """Training batches without an end."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor: ...

    def evaluate(self, model: nn.Module, split: Split) -> Scores: ...


@dataclass(frozen=True)
class NewsProblem:
    """A small Llama on the BBC articles; the articles of ``make demo``, less those that are held out for tuning."""

    batch_size: int = 16
    block_size: int = 128
    vocabulary: int = VOCABULARY
    evaluation_blocks: int = 200
    architecture: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        return {
            "text": "bbc",
            "batch_size": self.batch_size,
            "block_size": self.block_size,
            "vocabulary": self.vocabulary,
            "evaluation_blocks": self.evaluation_blocks,
            "architecture": dict(self.architecture),
        }

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(small_llama(self.vocabulary, **self.architecture))

    def batches(self, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        blocks = self._splits["train"]
        while True:
            order = torch.randperm(len(blocks), generator=generator)
            for batch in order.split(self.batch_size):
                if len(batch) == self.batch_size:
                    yield blocks[batch]

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return model(input_ids=batch, labels=batch).loss

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        model.eval()
        blocks = self._splits[split]
        total = sum(self.loss(model, batch).item() * len(batch) for batch in blocks.split(32))
        model.train()
        return Scores(total / len(blocks))

    @cached_property
    def _splits(self) -> dict[str, Tensor]:
        evaluation, tuning, training = hold_out([article.text for article in load_articles()], 0.1, 0.1)
        tokenizer = train_tokenizer(training, self.vocabulary)

        def blocks(documents: list[str], limit: int | None = None) -> Tensor:
            texts = Texts(Dataset.from_dict({TEXT: documents}))
            return torch.tensor(to_blocks(texts, tokenizer, self.block_size, limit=limit)["input_ids"][:])

        return {
            "train": blocks(training),
            "tune": blocks(tuning, self.evaluation_blocks),
            "eval": blocks(evaluation, self.evaluation_blocks),
        }
