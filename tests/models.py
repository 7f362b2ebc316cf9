"""Small models that several tests train."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts


class Tiny(nn.Module):
    """Tied embedding and head, LayerNorm, biases, a parameter no module kind knows: every kind of block in one."""

    def __init__(self, vocabulary: int = 11, width: int = 6):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.up, self.norm, self.down = nn.Linear(width, 8), nn.LayerNorm(8), nn.Linear(8, width, bias=False)
        self.gate = nn.Parameter(torch.randn(width, width) * 0.3)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids, attention_mask=None):
        hidden = self.embed(ids)
        hidden = hidden + self.down(self.norm(self.up(hidden)).tanh())
        return self.head(hidden + (hidden @ self.gate).tanh())


class Wide(nn.Module):
    """The same parts with matrices that are worth 8 bits: blocks of 64 and of 128 numbers, and some that have none."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.embed = nn.Embedding(81, width)
        nn.init.normal_(self.embed.weight, std=0.2)
        self.up, self.norm, self.down = nn.Linear(width, 128), nn.LayerNorm(128), nn.Linear(128, width, bias=False)
        self.gate = nn.Parameter(torch.randn(width, width) * 0.1)
        self.odd = nn.Linear(width, 65)
        self.even = nn.Linear(65, width)
        self.head = nn.Linear(width, 81, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids, attention_mask=None):
        hidden = self.embed(ids)
        hidden = hidden + self.down(self.norm(self.up(hidden)).tanh())
        hidden = hidden + self.even(self.odd(hidden).tanh())
        return self.head(hidden + (hidden @ self.gate).tanh())


class Routed(nn.Module):
    """Three experts in one tensor, of which the third is seldom chosen."""

    def __init__(self, width: int = 6, inner: int = 4):
        super().__init__()
        sizes = dict(hidden_size=width, intermediate_size=inner, num_local_experts=3, num_experts_per_tok=2)
        self.embed, self.head = nn.Embedding(11, width), nn.Linear(width, 11)
        self.experts = MixtralExperts(MixtralConfig(**sizes, experts_implementation="adafisher"))
        for parameter in self.experts.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, ids):
        hidden = self.embed(ids).flatten(0, 1)
        index = torch.stack([torch.zeros_like(ids), 1 + (ids == 3)], dim=-1).flatten(0, 1)
        weights = torch.softmax(hidden[:, :2], dim=-1)
        return self.head(hidden + self.experts(hidden, index, weights)).unflatten(0, ids.shape)


def tiny(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tiny:
    torch.manual_seed(seed)
    return Tiny().to(dtype)


def tiny_batches(count: int, shape: tuple[int, int] = (4, 5), seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 11, shape, generator=generator) for _ in range(count)]


def next_token_loss(model: nn.Module, ids: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    logits = model(ids[:, :-1]).flatten(0, 1)
    return nn.functional.cross_entropy(logits.double(), ids[:, 1:].flatten(), reduction=reduction)


def llama(seed: int = 0, **config) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    defaults = dict(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(LlamaConfig(**{**defaults, **config}))
