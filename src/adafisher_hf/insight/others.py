"""What other optimizers keep for a parameter, by formula: none of them has to be installed to be counted.

Counts of steps, and tables that all parameters share, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

Bytes = Callable[[Tensor, str], int]  # of a parameter and its role


def adamw(parameter: Tensor, role: str) -> int:
    """Two moments in the parameter's dtype (torch.optim.AdamW; Loshchilov & Hutter 2019)."""
    return 2 * parameter.numel() * parameter.element_size()


def adamw_8bit(parameter: Tensor, role: str) -> int:
    """Two bytes a number and two float32 scales a block of 256; below 4096 numbers two moments in float32
    (bitsandbytes.optim.AdamW8bit, ``init_state``; Dettmers et al. 2022)."""
    numbers = parameter.numel()
    return 8 * numbers if numbers < 4096 else 2 * numbers + 2 * 4 * -(-numbers // 256)


def adafactor(parameter: Tensor, role: str) -> int:
    """Means of squares over rows and over columns, in float32 at least; of a vector all squares
    (transformers.Adafactor without β₁, as the Trainer makes it; Shazeer & Stern 2018)."""
    *stack, numbers = parameter.shape or (1,)
    if stack:
        *stack, rows = stack
        numbers = math.prod(stack) * (rows + numbers)
    return numbers * max(parameter.element_size(), 4)


def muon(parameter: Tensor, role: str) -> int:
    """One momentum of a hidden matrix, AdamW of all else (torch.optim.Muon; Jordan et al. 2024)."""
    return adamw(parameter, role) // (2 if role == "hidden" else 1)


def galore(parameter: Tensor, role: str) -> int:
    """Of a hidden matrix m × n, m ≤ n, with the paper's usual rank r = m / 4: a projector m × r and two moments r × n;
    AdamW of all else (galore_torch.GaLoreAdamW; Zhao et al. 2024)."""
    if role != "hidden" or parameter.dim() != 2:
        return adamw(parameter, role)
    shorter, longer = sorted(parameter.shape)
    rank = max(1, shorter // 4)
    return rank * (shorter + 2 * longer) * parameter.element_size()


OTHERS: dict[str, Bytes] = {
    "AdamW": adamw,
    "AdamW, 8-bit": adamw_8bit,
    "Adafactor": adafactor,
    "Muon": muon,
    "GaLore, a quarter of the rank": galore,
}
