"""The update of the weights, from momentum and divisor. Kernels know tensors only; each is one file with ``update``."""

from __future__ import annotations

from collections.abc import Callable

from . import foreach, plain
from .batch import Batch, Hyper
from .divisor import Divisor

KERNELS: dict[str, Callable[[Batch, Hyper], None]] = {
    "auto": foreach.update,
    "foreach": foreach.update,
    "plain": plain.update,
}

__all__ = ["KERNELS", "Batch", "Divisor", "Hyper"]
