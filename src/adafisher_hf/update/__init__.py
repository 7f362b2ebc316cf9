"""Gradient and direction → weight. Adding a kernel: a file in this folder and its line in KERNELS.

Nothing is imported before it is used, so that the options can be listed without torch.
"""

from __future__ import annotations

import pkgutil
from typing import Any

KERNELS: dict[str, Any] = {  # whatever has ``advance``, ``ahead`` and ``apply``, or a module of this package
    "auto": "foreach",
    "plain": "plain",
    "foreach": "foreach",
}


def kernel_names() -> tuple[str, ...]:
    """What ``kernel`` may be."""
    return tuple(KERNELS)


def load_kernel(name: str) -> Any:
    """The kernel of this name."""
    kernel = KERNELS[name]
    return pkgutil.resolve_name(f"{__name__}.{kernel}") if isinstance(kernel, str) else kernel
