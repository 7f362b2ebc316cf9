"""What orthogonalises a matrix. Adding an iteration: a function of (matrices, steps), and its line in ITERATIONS.

The matrices are (stack, R, C) with R ≤ C; the result has about orthonormal rows. Nothing is imported before it is used,
so that the options can be listed without torch.
"""

from __future__ import annotations

import pkgutil
from typing import Any

ITERATIONS: dict[str, Any] = {  # a function, or its name in the package of preconditioners
    "newton_schulz": "newton_schulz:quintic",
    "polar_express": "newton_schulz:polar_express",
}


def iteration_names() -> tuple[str, ...]:
    """What ``iteration`` may be."""
    return tuple(ITERATIONS)


def load_iteration(name: str) -> Any:
    """The iteration of this name."""
    iteration = ITERATIONS[name]
    return pkgutil.resolve_name(f"{__package__}.{iteration}") if isinstance(iteration, str) else iteration
