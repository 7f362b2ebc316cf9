"""Language models from scratch: next tokens of blocks of text. Which text is for the subclasses to say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from data.text import TEXT, Texts
from data.tokens import VOCABULARY, to_blocks, train_tokenizer
from modeling import small_llama

from .problem import Scores, Split

EVALUATION_BATCH = 32


class Corpus(NamedTuple):
    """Documents by split.

    Attributes:
        shifted: text of another kind, to evaluate on; none: that is not measured.
    """

    train: list[str]
    tune: list[str]
    eval: list[str]
    shifted: list[str]


@dataclass(frozen=True)
class LanguageProblem(ABC):
    """A small language model with a tokenizer of its own.

    Attributes:
        text: the text's name.
        config: makes the model's configuration of the size of the vocabulary and the ``architecture``.
    """

    text: ClassVar[str]

    batch_size: int = 16
    block_size: int = 128
    vocabulary: int = VOCABULARY
    evaluation_blocks: int = 200
    config: Callable[..., PretrainedConfig] = small_llama
    architecture: Mapping[str, Any] = field(default_factory=dict)

    @abstractmethod
    def corpus(self) -> Corpus:
        """All documents."""

    def describe(self) -> dict[str, Any]:
        model = {} if self.config is small_llama else {"config": self.config.__name__}
        return {
            "text": self.text,
            "batch_size": self.batch_size,
            "block_size": self.block_size,
            "vocabulary": self.vocabulary,
            "evaluation_blocks": self.evaluation_blocks,
            "architecture": dict(self.architecture),
            **model,
        }

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(self.config(self.vocabulary, **self.architecture))

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

    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        shifted = self._mean_loss(model, "shifted") if split == "eval" and "shifted" in self._splits else None
        return Scores(self._mean_loss(model, split), shifted=shifted)

    @torch.no_grad()
    def _mean_loss(self, model: nn.Module, split: str) -> float:
        model.eval()
        blocks = self._splits[split]
        total = sum(self.loss(model, batch).item() * len(batch) for batch in blocks.split(EVALUATION_BATCH))
        model.train()
        return total / len(blocks)

    @cached_property
    def _splits(self) -> dict[str, Tensor]:
        corpus = self.corpus()
        tokenizer = train_tokenizer(corpus.train, self.vocabulary)

        def blocks(documents: list[str], limit: int | None) -> Tensor:
            texts = Texts(Dataset.from_dict({TEXT: documents}))
            return torch.tensor(to_blocks(texts, tokenizer, self.block_size, limit=limit)["input_ids"][:])

        limits = {"train": None, "tune": self.evaluation_blocks, "eval": self.evaluation_blocks}
        limits["shifted"] = self.evaluation_blocks
        documents = corpus._asdict()
        return {name: blocks(documents[name], limit) for name, limit in limits.items() if documents[name]}
