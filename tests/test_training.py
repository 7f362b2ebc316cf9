"""Real training on real text: nobody has to set an option to be ahead of AdamW."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

from adafisher_hf import AdaFisherW
from data.bbc import load_articles
from data.split import hold_out
from data.tokens import train_tokenizer
from tests.models import llama

STEPS, BATCH, BLOCK = 150, 16, 64
GRID = (2e-3, 4e-3)  # the same learning rates for all; nothing between 2e-3 and 3e-2 changes the order


@functools.cache
def corpus():
    """Blocks of tokens of whole articles: (training, evaluation)."""
    evaluation, training = hold_out([article.text for article in load_articles()], 0.1)
    tokenizer = train_tokenizer(training, 1024)

    def blocks(texts):
        ids = [token for text in tokenizer(texts)["input_ids"] for token in [*text, tokenizer.eos_token_id]]
        return torch.tensor(ids[: len(ids) // BLOCK * BLOCK]).view(-1, BLOCK)

    return blocks(training), blocks(evaluation)[:256]


def groups(model):
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def adamw(model, lr):
    return torch.optim.AdamW(groups(model), lr=lr, betas=(0.9, 0.95))


def adafisherw(model, lr, **knobs):
    return AdaFisherW(groups(model), model=model, lr=lr, **knobs)


@functools.cache
def final_loss(make, lr, seed=0):
    """Evaluation loss in nats a token after STEPS steps of warm-up and cosine."""
    training, evaluation = corpus()
    model = llama(seed, vocab_size=1024, hidden_size=64, intermediate_size=128, max_position_embeddings=BLOCK)
    optimizer = make(model, lr)
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))
    warmup = STEPS // 10
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * max(0, step - warmup) / (STEPS - warmup))),
    )
    for step in range(STEPS):
        batch = training[order[step * BATCH : (step + 1) * BATCH]]
        model(input_ids=batch, labels=batch).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    with torch.no_grad():
        return model(input_ids=evaluation, labels=evaluation).loss.item()


def best(make):
    return min(final_loss(make, lr) for lr in GRID)


KRONECKER = functools.partial(adafisherw, structure="kronecker")
REFERENCE = functools.partial(adafisherw, mode="reference")


@pytest.mark.timeout(600)
def test_defaults_end_at_or_below_adamw_and_far_below_the_published_optimizer():
    ours, theirs = best(adafisherw), best(adamw)
    published = best(REFERENCE)
    print(f"AdaFisherW {ours:.3f}, AdamW {theirs:.3f}, published {published:.3f}")
    assert ours <= theirs
    assert ours < published - 0.3


@pytest.mark.timeout(600)
def test_kronecker_ends_far_below_adamw():
    ours, theirs = best(KRONECKER), best(adamw)
    print(f"Kronecker {ours:.3f}, AdamW {theirs:.3f}")
    assert ours < theirs - 0.1
