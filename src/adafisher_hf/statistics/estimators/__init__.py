"""Of which gradients S is the second moment: one file an estimator."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Estimator

# A class, or "module:Class" of a module of this package, which is imported when it is used.
ESTIMATORS: dict[str, str | Callable[[], Estimator]] = {
    "empirical": "base:Empirical",
    "improved": "improved:Improved",
    "sampled": "sampled:Sampled",
}


def make_estimator(name: str) -> Estimator:
    """The estimator of this name."""
    target = ESTIMATORS[name]
    return (pkgutil.resolve_name(f"{__name__}.{target}") if isinstance(target, str) else target)()


def estimator_names() -> tuple[str, ...]:
    """What ``estimator`` may be."""
    return tuple(ESTIMATORS)
