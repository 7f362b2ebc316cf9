"""A hook of mkdocs: fences of ``math`` become MathML when the site is built, so that it needs no script for them."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert


def on_config(config: Any) -> None:
    """Tells superfences, which does the other fences, about this one."""
    fences = config["mdx_configs"].setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "math", "format": as_mathml})


def as_mathml(source: str, language: str, class_name: str, options: Any, md: Any, **more: Any) -> str:
    """The formula of a fence.

    Raises:
        ValueError: there is something in it that the converter does not know, which it would show as it is.
    """
    formula = str(convert(source, display="block"))
    if "\\" in formula or "<mi>&</mi>" in formula:
        raise ValueError(f"this formula cannot be converted: {source}")
    return f'<div class="{class_name}">{formula}</div>'
