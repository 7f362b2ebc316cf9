"""A BERT from scratch: 15 % of the tokens are hidden and have to be found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from .news import NewsProblem

HIDDEN, IGNORED, MASK = 0.15, -100, 0


@dataclass(frozen=True)
class MaskedNews(NewsProblem):
    """The news, with tokens that are hidden at random; in evaluation always the same."""

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "masked": HIDDEN}

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=self.vocabulary,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=self.block_size,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=None,
        )
        return BertForMaskedLM(config)

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        chances = torch.rand(batch.shape) if model.training else _fixed(batch)
        hidden = chances < HIDDEN
        labels = batch.masked_fill(~hidden, IGNORED)
        return model(input_ids=batch.masked_fill(hidden, MASK), labels=labels).loss


def _fixed(batch: Tensor) -> Tensor:
    return torch.rand(batch.shape, generator=torch.Generator().manual_seed(int(batch.sum())))
