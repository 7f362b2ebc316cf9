"""Arms, as they are written: ``"adafisherw structure=orthogonal lr=1e-3,3e-3"``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..config.knobs import did_you_mean
from ..integrations.entries import OPTIMIZERS
from .errors import CompareError

RATES = "lr="
EXAMPLE = "'adafisherw structure=orthogonal lr=1e-3,3e-3'"


@dataclass(frozen=True)
class Arm:
    """An optimizer with its options, and the learning rates that are tried with it.

    Attributes:
        optim: of TrainingArguments.
        optim_args: of TrainingArguments; empty: none.
        rates: without repetition.
    """

    optim: str
    optim_args: str
    rates: tuple[float, ...]

    def __str__(self) -> str:
        return " ".join(filter(None, (self.optim, self.optim_args)))


def parse_arms(texts: Sequence[str]) -> list[Arm]:
    """The arms of a comparison; the first is the baseline.

    Raises:
        CompareError: fewer than two, one twice, or see :func:`parse_arm`.
    """
    arms = [parse_arm(text) for text in texts]
    if len(arms) < 2:
        raise CompareError(
            f"--arms needs two arms or more, the baseline first, such as 'adamw_torch lr=1e-4' {EXAMPLE}"
        )
    names = [str(arm) for arm in arms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise CompareError(f"--arms has {twice!r} twice: write its learning rates as one list, lr=1e-4,3e-4")
    return arms


def parse_arm(text: str) -> Arm:
    """One arm: the name of the optimizer, its options as key=value, and ``lr=`` with one learning rate or several.

    Raises:
        CompareError: an unknown optimizer or option, or no learning rates.
    """
    optim, *options = text.split() or [""]
    _check_name(optim, text)
    rates = [option.removeprefix(RATES) for option in options if option.startswith(RATES)]
    if len(rates) != 1:
        raise CompareError(
            f"--arms {text!r} needs one lr=, with the learning rates to try; an arm is in quotes: {EXAMPLE}"
        )
    optim_args = ",".join(option for option in options if not option.startswith(RATES))
    _check_options(optim, optim_args, text)
    return Arm(optim, optim_args, tuple(dict.fromkeys(_rate(rate, text) for rate in rates[0].split(","))))


def shown(lr: float) -> str:
    """A learning rate as people write it: 3e-4."""
    mantissa, exponent = f"{lr:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _check_name(optim: str, text: str) -> None:
    if optim in OPTIMIZERS:
        return
    from transformers.training_args import OptimizerNames

    known = [member.value for member in OptimizerNames]
    if optim not in known:
        hint = did_you_mean(optim, known) or f" (there are {', '.join(known)})"
        raise CompareError(f"--arms {text!r} begins with {optim!r}, which is no optimizer of TrainingArguments{hint}")


def _check_options(optim: str, optim_args: str, text: str) -> None:
    """By the config of a registered optimizer; what others take only they know."""
    if optim not in OPTIMIZERS:
        return
    try:
        OPTIMIZERS[optim].config.from_optim_args(optim_args)
    except (OSError, TypeError, ValueError) as error:
        raise CompareError(f"--arms {text!r}: {error}") from error


def _rate(written: str, text: str) -> float:
    try:
        rate = float(written)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise CompareError(f"--arms {text!r}: a learning rate must be a number above 0, got {written!r}")
    return rate
