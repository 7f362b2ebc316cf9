"""The string ``TrainingArguments.optim_args``: ``key=value`` pairs with commas between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .knobs import allowed_text, knobs_of, parsed, shown, suggestion

TRAINER_ARGUMENTS = {"lr": "learning_rate", "learning_rate": "learning_rate", "weight_decay": "weight_decay"}


def read(text: str | None, cls: type) -> tuple[dict[str, Any], str | None]:
    """The knobs of ``cls`` that the string sets, and what its ``config=`` names.

    Raises:
        TypeError: ``text`` is no string.
        ValueError: an unknown key, a malformed pair, a key given twice, a value that does not fit its knob.
    """
    if not isinstance(text, str | None):
        raise TypeError(f"optim_args must be a string such as 'gamma=0.9,damping=0.1', got {shown(text)}")
    pairs = _split(text or "")
    config = pairs.pop("config", None)
    return {key: _value(cls, _known(cls, key), value) for key, value in pairs.items()}, config


def write(values: Mapping[str, Any]) -> str:
    """The string that ``read`` reads back as these values."""
    return ",".join(f"{key}={'none' if value is None else value}" for key, value in values.items())


def _split(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    written = text.split(",")
    if not written[-1].strip():
        written.pop()  # nothing at all, or a comma at the end as Python allows it
    for pair in written:
        if not pair.strip():
            where = "has nothing between two commas, or before the first"
            raise ValueError(f"optim_args {shown(text)} {where}: remove one")
        key, equals, value = (part.strip() for part in pair.partition("="))
        # A path may hold a "=" itself, a number may not.
        if not (key and equals and value) or ("=" in value and key != "config"):
            found = shown(pair.strip())
            raise ValueError(f"malformed optim_args pair {found}: write key=value, with commas between pairs")
        if key in pairs:
            raise ValueError(f"optim_args key {shown(key)} is given twice")
        pairs[key] = value
    return pairs


def _known(cls: type, key: str) -> str:
    if key in TRAINER_ARGUMENTS:
        raise ValueError(f"optim_args cannot set {key!r}: use TrainingArguments.{TRAINER_ARGUMENTS[key]}")
    if key not in knobs_of(cls):
        keys = ", ".join([*knobs_of(cls), "config"])
        raise ValueError(f"unknown optim_args key {shown(key)}{suggestion(key, cls, ['config'])} (valid keys: {keys})")
    return key


def _value(cls: type, key: str, text: str) -> Any:
    try:
        return parsed(cls, key, text)
    except ValueError:
        raise ValueError(f"optim_args: {key} must be {allowed_text(cls, key)}, got {shown(text)}") from None
