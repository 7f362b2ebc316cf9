"""The options of the related optimizers: FAdamConfig, SIRFShampooConfig, AdamQLRConfig."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .base import OptimizerConfig
from .knobs import Interval, knob

STRUCTURES = ("dense", "diagonal")
TENSORS = ("ways", "matrix")
STATE_DTYPES = ("float32", "bfloat16")
ROUNDINGS = ("kahan", "nearest")

POSITIVE = Interval(0, open_low=True)
DECAY = Interval(0, 1)


def _rounding() -> Any:
    """The knob that all of them have."""
    return knob(
        "kahan",
        ROUNDINGS,
        "of half-precision weights: kahan keeps what rounding cuts off in one more half-precision buffer",
    )


@dataclass(frozen=True, kw_only=True)
class FAdamConfig(OptimizerConfig):
    """The knobs of FAdam, apart from learning rate and weight decay; as ``OptimizerConfig``."""

    file_name: ClassVar[str] = "fadam_config.json"
    title: ClassVar[str] = "FAdam config"

    beta1: float = knob(0.9, DECAY, "decay of the momentum; the Trainer gives adam_beta1")
    beta2: float = knob(0.999, DECAY, "decay of the Fisher diagonal; the Trainer gives adam_beta2")
    eps: float = knob(1e-8, POSITIVE, "ε, at most; the Trainer gives adam_epsilon")
    eps2: float = knob(0.01, POSITIVE, "ε is at most this times the gradient's root mean square")
    clip: float = knob(1.0, POSITIVE, "largest root mean square of the natural gradient, and of the natural decay")
    p: float = knob(0.5, POSITIVE, "power of the Fisher diagonal: 1/2 is Adam's root, 1 the natural gradient's")
    rounding: str = _rounding()


@dataclass(frozen=True, kw_only=True)
class SIRFShampooConfig(OptimizerConfig):
    """The knobs of SIRFShampoo, apart from learning rate and weight decay; as ``OptimizerConfig``."""

    file_name: ClassVar[str] = "sirfshampoo_config.json"
    title: ClassVar[str] = "SIRFShampoo config"

    batch_size: int | None = knob(
        None, Interval(1), "samples that the loss is a mean of, over micro-batches and ranks (the Trainer's)"
    )
    structure: str = knob(
        "dense", STRUCTURES, "dense: a factor for each way of a tensor; diagonal: one number for each of its elements"
    )
    tensors: str = knob("ways", TENSORS, "more than two ways: a factor each, or the first against all others together")
    max_factor_dim: int = knob(1024, Interval(1), "a way longer than this has a diagonal factor")
    momentum: float = knob(0.9, DECAY, "α₁, of the update; the Trainer gives adam_beta1")
    factor_lr: float = knob(0.01, POSITIVE, "β₂, learning rate of the factors")
    factor_momentum: float = knob(0.5, DECAY, "α₂, Riemannian momentum of the factors")
    damping: float = knob(1e-3, Interval(0), "λ")
    update_interval: int = knob(1, Interval(1), "T, steps between two refreshes of the factors")
    state_dtype: str = knob("float32", STATE_DTYPES, "of factors and momentum (float64 for float64 parameters)")
    rounding: str = _rounding()


@dataclass(frozen=True, kw_only=True)
class AdamQLRConfig(OptimizerConfig):
    """The knobs of AdamQLR, apart from weight decay and schedule; as ``OptimizerConfig``."""

    file_name: ClassVar[str] = "adamqlr_config.json"
    title: ClassVar[str] = "AdamQLR config"

    damping: float = knob(1e-3, POSITIVE, "λ at the start; 1e-8 at least afterwards")
    damping_decrease: float = knob(0.5, Interval(0, 1, open_low=True), "ω_dec: λ times this where the model was right")
    damping_increase: float = knob(2.0, Interval(1, open_low=True), "ω_inc: λ times this where it was wrong")
    lr_clip: float | None = knob(None, POSITIVE, "largest size of the learning rate α that is chosen (no limit)")
    beta1: float = knob(0.9, DECAY, "decay of the momentum; the Trainer gives adam_beta1")
    beta2: float = knob(0.999, DECAY, "decay of the second moment; the Trainer gives adam_beta2")
    eps: float = knob(1e-8, POSITIVE, "added to its root; the Trainer gives adam_epsilon")
    rounding: str = _rounding()
