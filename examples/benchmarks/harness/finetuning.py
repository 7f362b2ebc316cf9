"""Problems of fine-tuning: the data and the models of ``materials``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .materials.material import Material
from .problem import Scores, Split
from .scoring import Tally

EVALUATION_BATCH = 16


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
        tally = Tally()
        for batch in DataLoader(self._material.splits[split], EVALUATION_BATCH, collate_fn=self._material.collate):
            outputs, targets = model(**batch), batch["labels"]
            logits = outputs.logits
            if self.next_token:
                logits, targets = logits[:, :-1], targets[:, 1:]
            tally.add(logits, targets, outputs.loss.item())
        model.train()
        return tally.scores()

    @cached_property
    def _material(self) -> Material:
        return self.prepare(**self.sizes)
