"""The problems by name, at any width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from errors import InputError

from .finetuning import FineTuning
from .gpt2 import HEAD, small_gpt2
from .materials.translation import headlines
from .materials.vision import digits
from .news import NewsProblem
from .problem import Problem
from .sources import PythonProblem

WIDTHS = {"news": 128, "python": 128, "gpt2": 128, "t5": 128, "vit": 64}


def make_problem(name: str, width: int | None = None) -> Problem:
    """One of ``WIDTHS``, as wide as there or as asked.

    Raises:
        InputError: no model can have this width.
    """
    width = width or WIDTHS[name]
    if width % HEAD:
        raise InputError(f"--width {width} is no multiple of {HEAD}")
    return _MAKERS[name](width)


def title_of(name: str, problem: Problem) -> str:
    """The problem in a line, with the size of its model."""
    return f"{TITLES[name]}, {parameters_of(problem) / 1e6:.1f} M parameters"


def parameters_of(problem: Problem) -> int:
    return sum(parameter.numel() for parameter in problem.model(0).parameters())


def _llama(width: int) -> dict[str, Any]:
    if width == WIDTHS["news"]:
        return {}
    return {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // HEAD}


TITLES = {
    "news": "Llama, BBC News",
    "python": "Llama, Python's standard library",
    "gpt2": "GPT-2, BBC News",
    "t5": "T5, headlines of BBC News",
    "vit": "ViT, digits",
}
_MAKERS: dict[str, Callable[[int], Problem]] = {
    "news": lambda width: NewsProblem(architecture=_llama(width)),
    "python": lambda width: PythonProblem(architecture=_llama(width)),
    "gpt2": lambda width: NewsProblem(config=small_gpt2, architecture={"hidden_size": width}),
    "t5": lambda width: FineTuning("headlines", headlines, 16, {"d_model": width}),
    "vit": lambda width: FineTuning("digits", digits, 64, {"hidden_size": width}),
}
