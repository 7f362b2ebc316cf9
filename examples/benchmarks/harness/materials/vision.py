"""Small vision transformers: one from random weights, one that knows other digits already."""

from __future__ import annotations

import copy

import torch
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTForImageClassification, default_data_collator

from data.digits import load_digits
from data.limits import LimitArguments
from data.mnist import SIDE, load_mnist
from run_image_classification import VisionArguments, small_vit

from .adapters import adapted
from .material import Material, with_tuning

LEARNED, NEW = range(5), range(5, 10)
EPOCHS, BATCH, LR = 8, 32, 1e-3


def digits(**sizes: int) -> Material:
    """scikit-learn's digits, from random weights."""
    splits = with_tuning(*load_digits(LimitArguments()))
    config = small_vit(VisionArguments(**sizes), splits["train"].features["labels"].names)
    return Material(splits, default_data_collator, lambda: ViTForImageClassification(config))


def mnist(hidden_size: int, lora_r: int) -> Material:
    """The upper half of MNIST's digits, for a model that has learned to tell the lower half."""
    learned = _learned(hidden_size)

    def make_model() -> nn.Module:
        model = copy.deepcopy(learned)
        model.classifier = nn.Linear(hidden_size, len(NEW))
        return adapted(model, lora_r, head="classifier")  # PEFT has no kind for models of images

    return Material(load_mnist(NEW), default_data_collator, make_model)


def _learned(hidden_size: int) -> ViTForImageClassification:
    """Trained with AdamW, always in the same way."""
    config = ViTConfig(
        image_size=SIDE,
        patch_size=4,
        num_channels=1,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=4,
        num_attention_heads=4,
        id2label=dict(enumerate(map(str, LEARNED))),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ViTForImageClassification(config).train()
        _train(model, load_mnist(LEARNED)["train"])
    return model


def _train(model: nn.Module, rows: Dataset) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    loader = DataLoader(rows, BATCH, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(0))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=EPOCHS * len(loader))
    for _ in range(EPOCHS):
        for batch in loader:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
