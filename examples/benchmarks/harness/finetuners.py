"""The arms of the benchmark of fine-tuning. Each tunes its learning rate; all else is as it comes, and r is 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .arms import Arm, Build, Point, adafactor, adafisherw, adamw, adamw_8bit, loraplus, lorarite, riemannian

WHOLE, ADAPTERS = 1e-4, 1e-3  # where tuning begins

BASELINE = "AdamW"
OURS = "AdaFisherW"
PAIR, FACTORS = f"{OURS}, pair", f"{OURS}, factors"


def _arm(name: str, make: Build, lr: float, knobs: Mapping[str, Any] | None = None) -> Arm:
    return Arm(name, make, knobs or {}, finds_tables=make is adafisherw, start=Point(lr, None, 1.0))


def _published(lr: float) -> tuple[Arm, ...]:
    return (
        _arm(BASELINE, adamw, lr, {"fused": True}),
        _arm("AdamW, 8-bit", adamw_8bit, lr),
        _arm("Adafactor", adafactor, lr),
    )


def _ours(lr: float, **variants: Mapping[str, Any]) -> tuple[Arm, ...]:
    return tuple(_arm(f"{OURS}, {name}", adafisherw, lr, knobs) for name, knobs in variants.items())


FULL_ARMS = (
    *_published(WHOLE),
    *_ours(
        WHOLE,
        diagonal={},
        bfloat16={"state_dtype": "bfloat16"},
        int8={"state_dtype": "int8"},
        kronecker={"structure": "kronecker"},
        orthogonal={"structure": "orthogonal"},
    ),
)
LORA_ARMS = (
    *_published(ADAPTERS),
    _arm("LoRA+", loraplus, ADAPTERS, {"ratio": 16.0}),
    _arm("Riemannian AdamW", riemannian, ADAPTERS),
    _arm("LoRARite", lorarite, ADAPTERS),
    *_ours(
        ADAPTERS,
        factors={"lora": "factors"},
        pair={"lora": "pair"},
        # The wide side of an adapter would have a factor far larger than the adapter (docs/lora.md).
        kronecker={"lora": "factors", "structure": "kronecker", "max_factor_dim": 16},
        orthogonal={"lora": "factors", "structure": "orthogonal"},
    ),
)
