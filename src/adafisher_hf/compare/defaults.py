"""Which arms where nobody says, by what the model is; and what it is, by the script's arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from .program import OFF

SCRATCH, PRETRAINED, LORA = "scratch", "pretrained", "lora"
# As they are written; the baseline is AdamW.
ARMS = {
    SCRATCH: ("adamw_torch lr=3e-4,1e-3,3e-3", "adafisherw structure=orthogonal lr=1e-3,3e-3,1e-2"),
    PRETRAINED: ("adamw_torch lr=1e-5,3e-5,1e-4", "adafisherw lr=1e-5,3e-5,1e-4"),
    LORA: ("adamw_torch lr=1e-4,3e-4,1e-3", "adafisherw lr=1e-4,3e-4,1e-3", "adafisherw lora=pair lr=1e-4,3e-4,1e-3"),
}
NAMES = {
    LORA: ("use_peft", "use_lora", "lora", "lora_r", "lora_rank", "lora_alpha", "lora_target_modules"),
    PRETRAINED: ("model_name_or_path", "model_name", "model_id", "base_model", "model"),
    SCRATCH: ("config_name", "model_type", "config_overrides"),
}


class Guess(NamedTuple):
    """What a model seems to be, and the flag that says so."""

    kind: str
    flag: str


def guess(flags: Mapping[str, str]) -> Guess | None:
    """The kind of the model that a script is going to train; adapters first, for they have a pretrained model as well.

    Args:
        flags: of the script, by name without dashes.
    """
    return next(_guesses(flags), None)


def _guesses(flags: Mapping[str, str]) -> Iterator[Guess]:
    for kind, names in NAMES.items():
        yield from (Guess(kind, name) for name in names if name in flags and flags[name].lower() not in OFF)
