"""The options of the related optimizers, and of the two baselines: Muon and SOAP."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from .base import OptimizerConfig
from .knobs import Interval, knob

STRUCTURES = ("dense", "diagonal")
TENSORS = ("ways", "matrix")
STATE_DTYPES = ("float32", "bfloat16")
ROUNDINGS = ("kahan", "nearest")

MUON_STEPS = 100  # torch's own takes fewer
SOAP_BETAS = (0.95, 0.95)

POSITIVE = Interval(0, open_low=True)
DECAY = Interval(0, 1)


def _rounding() -> Any:
    """The knob that all of them have."""
    return knob(
        "kahan",
        ROUNDINGS,
        "of half-precision weights: kahan keeps what rounding cuts off in one more half-precision buffer",
    )


def _vocabulary_lr() -> Any:
    return knob(1.0, POSITIVE, "embeddings and output heads learn at this multiple of the learning rate")


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


@dataclass(frozen=True, kw_only=True)
class MuonConfig(OptimizerConfig):
    """The knobs of Muon, apart from learning rate and weight decay; as ``OptimizerConfig``."""

    file_name: ClassVar[str] = "muon_config.json"
    title: ClassVar[str] = "Muon config"

    momentum: float = knob(0.95, DECAY, "μ, of the hidden matrices")
    nesterov: bool = knob(True, (True, False), "whether this momentum looks one step ahead")
    ns_steps: int = knob(5, Interval(1, MUON_STEPS), "Newton-Schulz steps")
    vocabulary_lr: float = _vocabulary_lr()
    beta1: float = knob(0.9, DECAY, "of AdamW, for all that is no hidden matrix; the Trainer gives adam_beta1")
    beta2: float = knob(0.999, DECAY, "of AdamW; the Trainer gives adam_beta2")
    eps: float = knob(1e-8, POSITIVE, "of AdamW; the Trainer gives adam_epsilon")
    rounding: str = _rounding()


@dataclass(frozen=True, kw_only=True)
class SOAPConfig(OptimizerConfig):
    """The knobs of SOAP, apart from learning rate and weight decay; as ``OptimizerConfig``."""

    file_name: ClassVar[str] = "soap_config.json"
    title: ClassVar[str] = "SOAP config"

    beta1: float | None = knob(None, DECAY, "decay of the momentum; none: 0.95, or adam_beta1 where that is not 0.9")
    beta2: float | None = knob(
        None, DECAY, "decay of the second moment; none: 0.95, or adam_beta2 where that is not 0.999"
    )
    shampoo_beta: float | None = knob(None, DECAY, "decay of the factors; none: beta2")
    eps: float = knob(1e-8, POSITIVE, "added to the root of the second moment; the Trainer gives adam_epsilon")
    precondition_frequency: int = knob(10, Interval(1), "steps between two turns of the bases")
    max_precondition_dim: int = knob(10000, Interval(1), "a side longer than this has no basis of its own")
    vocabulary_lr: float = _vocabulary_lr()

    def resolved(self) -> SOAPConfig:
        """The same with a number in place of every None."""
        beta1, beta2 = (
            own if given is None else given for given, own in zip((self.beta1, self.beta2), SOAP_BETAS, strict=True)
        )
        shampoo_beta = beta2 if self.shampoo_beta is None else self.shampoo_beta
        return dataclasses.replace(self, beta1=beta1, beta2=beta2, shampoo_beta=shampoo_beta)
