"""Estimators over ranks: half of the batch on each of two, against one process with all of it, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from adafisher_hf import AdaFisherW
from tests.distributed.ranks import run_ranks
from tests.models import llama

IDS = torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(1))


ESTIMATORS = ("improved", "sampled")


def train(rank: int, wrapping: str) -> list[torch.Tensor]:
    """The curvature of every matrix after three steps with each; nothing is drawn, so that ranks can be compared."""
    torch.distributions.Categorical.sample = lambda self: self.logits.argmin(-1)
    return [curvature for estimator in ESTIMATORS for curvature in train_with(estimator, rank, wrapping)]


def train_with(estimator: str, rank: int, wrapping: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = llama(vocab_size=11).double()
    if wrapping == "fsdp2":
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    trained = DistributedDataParallel(model) if wrapping == "ddp" else model
    optimizer = AdaFisherW(trained, lr=1e-2, estimator=estimator)
    ids = IDS if wrapping == "one" else IDS[2 * rank : 2 * rank + 2]
    for _ in range(3):
        optimizer.zero_grad()
        trained(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return [optimizer.curvature(p).clone() for p in model.parameters() if p.dim() == 2]


@pytest.mark.parametrize("wrapping", ["ddp", "fsdp2"])
def test_ranks_see_what_one_process_sees(wrapping, monkeypatch):
    monkeypatch.setattr(torch.distributions.Categorical, "sample", None)  # put back what ``train`` changes
    alone = train(0, "one")
    for found in run_ranks(2, train, wrapping):
        for own, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-12)
