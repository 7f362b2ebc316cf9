"""Hooks that stay behind when a model is copied or saved: they are about the optimizer of the original."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Hook:
    """A function that a module calls. Copies and pickled ones do nothing, and are taken off by the next optimizer."""

    retired = False

    def __init__(self, function: Callable[..., Any], *first: Any):
        self._function, self._first = function, first

    def __call__(self, *args: Any) -> Any:
        return None if self.retired else self._function(*self._first, *args)

    def __deepcopy__(self, memo: dict) -> Hook:
        return _retired_hook()

    def __reduce__(self) -> tuple:
        return _retired_hook, ()


def _retired_hook() -> Hook:
    hook = Hook.__new__(Hook)
    hook.retired = True
    return hook
