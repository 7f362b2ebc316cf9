"""Training without a Trainer, padding or packing: every row by itself, its loss by its share of the tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adafisher_hf import AdaFisher, AdaFisherW


def recorded(model: nn.Module) -> list[list[Tensor]]:
    """Fills up with the rows of each forward pass to come, without padding and unpacked."""
    steps: list[list[Tensor]] = []

    def record(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids, mask, position = (kwargs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
        if position is not None:
            starts = torch.nonzero(position[0] == 0).flatten().tolist()
            steps.append(list(ids[0].tensor_split(starts[1:])))
        else:
            steps.append([row[kept.bool()] for row, kept in zip(ids, ids >= 0 if mask is None else mask, strict=True)])

    model.register_forward_pre_hook(record, with_kwargs=True)
    return steps


def row_by_row(model: nn.Module, steps: Sequence[Sequence[Tensor]], **knobs: Any) -> AdaFisher:
    """Trains the model, and returns the optimizer that did it."""
    model.train()
    optimizer = AdaFisherW(model, **{"lr": 1e-2, **knobs})
    for rows in steps:
        optimizer.zero_grad()
        predicted = sum(len(row) - 1 for row in rows)
        for row in rows:
            loss = model(input_ids=row[None], labels=row[None]).loss
            (loss * ((len(row) - 1) / predicted)).backward()
        optimizer.step()
    return optimizer


def assert_as_row_by_row(
    model: nn.Module, optimizer: AdaFisher, fresh: nn.Module, steps: Sequence[Sequence[Tensor]], **knobs: Any
) -> None:
    """Weights and curvature are those of the oracle, which trains ``fresh``: the model as it was at first."""
    assert_same_training(model, optimizer, fresh, row_by_row(fresh, steps, **knobs))


def assert_same_training(model: nn.Module, optimizer: AdaFisher, other: nn.Module, other_optimizer: AdaFisher) -> None:
    """Weights are the same, and curvature where it is not in an eigenbasis, whose signs and order are arbitrary."""
    diagonal = optimizer.config.structure == "diagonal"
    atol = 1e-7 if diagonal else 2e-6  # small eigenvalues lie close together
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
        if p.requires_grad and diagonal:
            torch.testing.assert_close(
                optimizer.curvature(p), other_optimizer.curvature(q), rtol=1e-5, atol=1e-7,
                msg=lambda m, n=name: f"curvature of {n}: {m}",
            )  # fmt: skip
