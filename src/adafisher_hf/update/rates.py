"""The learning rate of the vocabulary: how much faster than the rest embeddings and output heads learn from scratch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ranks import whole

USUAL_RMS = 0.02  # of the weights that most models of transformers start with
USUAL_MULTIPLE = 4.0
MOST = 4.0


@torch.no_grad()
def default_multiple(weight: Tensor, like: Tensor) -> Tensor:
    """The multiple of the learning rate for a weight as it was drawn: 4 √(RMS / 0.02), from 1 to 4; shape ().

    A table whose numbers are smaller has less far to go. (One whose numbers are larger, such as T5's, has further, but
    the 28 that this would give ruined a small T5.) Of a weight that is split every rank has to ask.

    Args:
        weight: before the first step.
        like: a tensor of the dtype and device of the result.
    """
    rms = whole(weight.detach().to(like.dtype).square().mean()).sqrt().to(like.device)
    return (USUAL_MULTIPLE * (rms / USUAL_RMS).sqrt()).clamp(1.0, MOST)
