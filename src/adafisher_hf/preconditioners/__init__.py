"""Sums → state → direction of the step. Adding a preconditioner: a file in this folder and its line in PRECONDITIONERS.

Nothing is imported before it is used, so that the options can be listed without torch.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CALIBRATED = "calibrated"  # the mode whose curvature has no unit


@dataclass(frozen=True)
class Entry:
    """A preconditioner and what options it starts with.

    Attributes:
        target: the class, or ``"module:Class"`` of a module of this package.
        mode: of AdaFisherConfig; a calibrated one is chosen by its name as ``structure``, the others by their mode.
        defaults: of the options that are None.
        without: the options that it has no use for.
    """

    target: type | str
    mode: str = CALIBRATED
    defaults: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()

    def load(self) -> Any:
        """The class."""
        return pkgutil.resolve_name(f"{__name__}.{self.target}") if isinstance(self.target, str) else self.target

    def all_defaults(self) -> dict[str, Any]:
        """Its own, and what every entry starts with that says nothing else."""
        return {**COMMON, **self.defaults}


COMMON = dict(beta=0.9, nesterov=False)
BASES = ("max_factor_dim", "basis_interval", "second_moment")  # of dense factors
PAIRS = ("lora", "pair_damping")  # of adapters
MATRICES = ("narrow_side", "iteration", "iteration_steps", "orthogonal_exclude")  # of orthogonalised ones
RELEASE = ("gradient_release",)
PUBLISHED = dict(damping=1e-3, gamma=0.8, update_warmup=0, token_stride=1, vocabulary_lr=1.0)

PRECONDITIONERS: dict[str, Entry] = {
    "diagonal": Entry(
        "diagonal:Diagonal",
        defaults=dict(damping=0.1, update_warmup=100, token_stride=1),
        without=(*BASES, *MATRICES),
    ),
    "kronecker": Entry(
        "kronecker:Kronecker", defaults=dict(damping=0.3, update_warmup=100), without=(*MATRICES, *RELEASE)
    ),
    "orthogonal": Entry(
        "orthogonal:Orthogonal",
        defaults=dict(beta=0.8, nesterov=True, damping=0.1, update_warmup=100),
        without=("second_moment", *RELEASE),
    ),
    "paper": Entry(
        "paper:Paper", mode="paper", defaults=PUBLISHED, without=(*BASES, *MATRICES, *PAIRS, *RELEASE, "beta2")
    ),
    "reference": Entry(
        "reference:Reference",
        mode="reference",
        defaults=PUBLISHED,
        without=(*BASES, *MATRICES, *PAIRS, *RELEASE, "beta2", "token_stride", "estimator"),
    ),
}


def structures() -> tuple[str, ...]:
    """What ``structure`` may be."""
    return tuple(name for name, entry in PRECONDITIONERS.items() if entry.mode == CALIBRATED)


def modes() -> tuple[str, ...]:
    """What ``mode`` may be."""
    return tuple(dict.fromkeys(entry.mode for entry in PRECONDITIONERS.values()))


def find(mode: str, structure: str) -> Entry:
    """The entry that a mode and a structure name.

    Raises:
        ValueError: the published modes are diagonal.
    """
    if mode == CALIBRATED:
        return PRECONDITIONERS[structure]
    if structure != "diagonal":
        raise ValueError(f"structure={structure!r} needs mode='calibrated', got mode={mode!r}")
    return next(entry for entry in PRECONDITIONERS.values() if entry.mode == mode)


def users_of(option: str) -> str:
    """The modes and structures that have a use for an option, as they are written: ``structure='kronecker'``."""
    users = {name: entry for name, entry in PRECONDITIONERS.items() if option not in entry.without}
    ours = [name for name in structures() if name in users]
    calibrated = [f"mode={CALIBRATED!r}"] if ours == list(structures()) else [f"structure={name!r}" for name in ours]
    others = [f"mode={entry.mode!r}" for entry in users.values() if entry.mode != CALIBRATED]
    return " or ".join(dict.fromkeys([*calibrated, *others]))
