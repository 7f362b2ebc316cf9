"""AdaFisherConfig: every knob of AdaFisher and AdaFisherW, once, with its default, range and help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..preconditioners import CALIBRATED, Entry, find, modes, structures, users_of
from ..preconditioners.iterations import iteration_names
from ..statistics.estimators import estimator_names
from ..update import kernel_names
from .base import OptimizerConfig
from .knobs import Interval, Text, checked, knob, knobs_of, shown

CONFIG_NAME = "adafisher_config.json"

SECOND_MOMENTS = ("factors", "rotated")
STATE_DTYPES = ("float32", "bfloat16", "int8")
ROUNDINGS = ("kahan", "nearest")
ADAPTERS = ("factors", "pair")


@dataclass(frozen=True, kw_only=True)
class AdaFisherConfig(OptimizerConfig):
    """The knobs of AdaFisher and AdaFisherW, apart from learning rate and weight decay.

    None stands for the default of the mode and structure; ``resolved()`` fills it in.

    Raises:
        TypeError: an unknown knob, or a value of the wrong type.
        ValueError: a value out of range, an unknown choice, or a structure that the mode does not have.
    """

    file_name: ClassVar[str] = CONFIG_NAME
    title: ClassVar[str] = "AdaFisher config"

    beta: float | None = knob(
        None,
        Interval(0, 1),
        "decay of the momentum (0.9, orthogonal 0.8); the Trainer gives adam_beta1 where that is not its own default",
    )
    mode: str = knob(
        CALIBRATED,
        modes,
        "calibrated: scale-free, AdamW's learning rates; paper: eq. 3-4; reference: the authors' code",
        fixed=True,
    )
    damping: float | None = knob(
        None,
        Interval(0, open_low=True),
        "calibrated: multiple τ of the mean curvature (0.1, kronecker 0.3); paper, reference: the constant λ (0.001)",
    )
    beta2: float = knob(0.95, Interval(0, 1), "decay of the gradient scale σ (calibrated only)")
    gamma: float | None = knob(
        None,
        Interval(0, 1),
        "decay of the curvature factors a refresh (calibrated: 0.95 in the dense warm-up, then 0.8; else 0.8)",
    )
    update_interval: int = knob(10, Interval(1), "steps between two refreshes of the curvature")
    update_warmup: int | None = knob(
        None, Interval(0), "refresh at every step for so many steps first (calibrated: 100; else 0)"
    )
    structure: str = knob(
        "diagonal",
        structures,
        "diagonal: two vectors a weight; kronecker: full factors in their eigenbasis; orthogonal: the diagonal "
        "direction of hidden matrices, orthogonalised",
        fixed=True,
    )
    vocabulary_lr: float | None = knob(
        None,
        Interval(0, open_low=True),
        "embeddings and output heads take this multiple of the learning rate (a model from scratch: by the size of "
        "their weights; loaded weights, and models that are not transformers': 1)",
        fixed=True,
    )
    nesterov: bool | None = knob(
        None, (True, False), "look a step ahead of the momentum (orthogonal: True; else False)"
    )
    narrow_side: bool = knob(
        True,
        (True, False),
        "orthogonal: embeddings and output heads have a full factor on their narrow side, not two diagonals",
        fixed=True,
    )
    iteration: str = knob("newton_schulz", iteration_names, "orthogonal: what orthogonalises")
    iteration_steps: int = knob(5, Interval(1), "orthogonal: steps of that iteration")
    orthogonal_exclude: str | None = knob(
        None,
        Text("patterns of parameter names with | between them, such as *.k_proj.*|*.v_proj.*"),
        "orthogonal: hidden matrices that are stepped like the diagonal structure's",
        fixed=True,
    )
    lora: str = knob(
        "factors",
        ADAPTERS,
        "factors: each factor of a LoRA adapter by itself; pair: one step of their product (not LoRA+'s two rates)",
        fixed=True,
    )
    pair_damping: float = knob(0.2, Interval(0, open_low=True), "lora=pair: damping of the factors' r × r Grams")
    max_factor_dim: int = knob(
        1024,
        Interval(1),
        "kronecker, orthogonal: a side of a weight longer than this keeps a diagonal factor",
        fixed=True,
    )
    basis_interval: int = knob(
        10, Interval(1), "kronecker, orthogonal: refreshes between two eigenbases of a parameter"
    )
    second_moment: str = knob(
        "factors",
        SECOND_MOMENTS,
        "kronecker: curvature in the basis from the factors' eigenvalues, or an EMA of the squared rotated gradient",
        fixed=True,
    )
    token_stride: int | None = knob(
        None,
        Interval(1),
        "take the statistics of every so many tokens (diagonal: 1; else up to 4, as long as a dense factor gets "
        "as many tokens as it has rows)",
    )
    estimator: str = knob(
        "empirical",
        estimator_names,
        "of S: empirical takes the training loss's own gradients, improved divides each token's by that of its logits, "
        "sampled draws labels from the model (a backward pass more a refresh)",
        fixed=True,
    )
    state_dtype: str = knob(
        "float32",
        STATE_DTYPES,
        "of the momentum and of rotated second moments (float64 for float64 parameters if float32 is asked for); int8: "
        "of the momentum alone, in blocks, by bitsandbytes; all else is float32 at least",
        fixed=True,
    )
    gradient_release: bool = knob(
        False,
        (True, False),
        "diagonal: take each parameter's step in the backward pass and free its gradient (one process, no clipping, "
        "no accumulation, no loss scaler)",
    )
    rounding: str = knob(
        "kahan",
        ROUNDINGS,
        "of half-precision weights: kahan keeps what rounding cuts off in one more half-precision buffer",
        fixed=True,
    )
    kernel: str = knob("auto", kernel_names, "implementation of the update")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self._without_effect():
            raise ValueError(
                f"{name}={shown(getattr(self, name), quoted=False)} has no effect with mode={self.mode!r}, "
                f"structure={self.structure!r}: it belongs to {users_of(name)}, leave it out"
            )
        if self.gradient_release and self.takes_pairs:
            raise ValueError("gradient_release steps one factor at a time, lora='pair' both at once: leave one out")

    def resolved(self) -> AdaFisherConfig:
        """The same with the defaults of its mode and structure in place of None."""
        # Some keep their None: calibrated γ, which changes when the dense warm-up ends, the stride that goes by the
        # number of tokens, the learning rate that goes by the weights.
        defaults = self._preconditioner().all_defaults()
        return self._with({key: value for key, value in defaults.items() if getattr(self, key) is None})

    @property
    def takes_pairs(self) -> bool:
        """Whether the factors of an adapter take one step."""
        return self.lora == "pair"

    def excluded(self) -> tuple[str, ...]:
        """The patterns of ``orthogonal_exclude``."""
        return tuple(pattern.strip() for pattern in (self.orthogonal_exclude or "").split("|") if pattern.strip())

    def _preconditioner(self) -> Entry:
        return find(self.mode, self.structure)

    def _without_effect(self) -> list[str]:
        """The options that were changed although nothing reads them here."""
        return _changed_in_vain(self._preconditioner(), self.to_dict())

    @classmethod
    def _of_saved(cls, content: Mapping[str, Any]) -> AdaFisherConfig:
        # A saved file has every option, and nobody has asked for those that have no effect.
        chosen = cls(**{name: content[name] for name in ("mode", "structure") if name in content})
        vain = _changed_in_vain(chosen._preconditioner(), content)
        for name in vain:
            checked(cls, name, content[name])
        return cls(**{name: value for name, value in content.items() if name not in vain})

    def _unresolved(self, changes: Mapping[str, Any]) -> AdaFisherConfig:
        # A saved config is a resolved one: its τ = 0.1 must not become λ = 0.1 when another mode is asked for, and
        # what it says of an eigenbasis has no effect when the structure that has one is not the one that is asked for.
        chosen = {"mode": self.mode, "structure": self.structure, **changes}
        entry, old = find(chosen["mode"], chosen["structure"]), self._preconditioner()
        if entry is old:
            return self
        kept = {name: value for name, value in self.to_dict().items() if name not in entry.without}
        stale = {name for name, value in old.all_defaults().items() if getattr(self, name) == value}
        kept = {name: value for name, value in kept.items() if name not in stale}
        return type(self)(**{**kept, "mode": entry.mode, "structure": chosen["structure"]})._with({}, self._unknown)


def _changed_in_vain(entry: Entry, options: Mapping[str, Any]) -> list[str]:
    knobs = knobs_of(AdaFisherConfig)
    return [
        name
        for name in entry.without
        if name in options and options[name] not in (knobs[name].default, entry.all_defaults().get(name))
    ]
