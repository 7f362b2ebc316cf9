"""The statistics of the published code, for ``mode="reference"``: of the last micro-batch only, and without a mask."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..layers import accumulation_dtype
from ..layers.reference import ReferenceKind
from .sums import Sums
from .tap import Tap


class ReferenceTap(Tap):
    """Keeps the last micro-batch's raw means instead of sums, and knows no mask."""

    kind: ReferenceKind

    @torch.no_grad()
    def forward(self, module: Any, args: tuple, kwargs: dict, output: Tensor) -> None:
        if self.retired or not self.gate.active or not output.requires_grad:
            return
        x = (args or tuple(kwargs.values()))[0]
        output.register_hook(partial(self._take, module, self.kind.raw_input(module, _wide(x))))

    @torch.no_grad()
    def _take(self, module: Any, inputs: Tensor, grad: Tensor) -> None:
        outputs = self.kind.raw_output(module, _wide(grad))
        self.sums = None
        self.commit(Sums(inputs.unsqueeze(0), outputs.unsqueeze(0), torch.ones_like(outputs[0])))


def _wide(x: Tensor) -> Tensor:
    return x.to(accumulation_dtype(x.dtype))
