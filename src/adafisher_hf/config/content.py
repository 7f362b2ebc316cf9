"""JSON that anyone may have written: one kind of error for whatever is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DEEPEST = 50  # levels; Python's own limit depends on who asks, and copies and messages have to fit as well


def read_text(file: Path) -> str:
    """The text of a file in UTF-8, with a byte order mark or without.

    Raises:
        ValueError: another encoding.
        OSError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the content is not UTF-8 (byte {error.start}): save it in that encoding") from None


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: no JSON, or nested more deeply than anything that is meant.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("the content is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"the content is not valid JSON: {error}") from None
    level = [content]
    for _ in range(DEEPEST):
        level = [child for item in level for child in _children(item)]
    if level:
        raise ValueError(f"the content is nested too deeply: more than {DEEPEST} levels")
    return content


def _children(item: Any) -> list[Any]:
    return list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []
