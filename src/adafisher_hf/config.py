"""AdaFisherConfig: every knob of the optimizers, once, with its default, range and help."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import math
import numbers
import os
import types
import typing
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

CONFIG_NAME = "adafisher_config.json"
FORMAT_VERSION = 1

MODES = ("calibrated", "paper", "reference")
STRUCTURES = ("diagonal", "kronecker")
SECOND_MOMENTS = ("factors", "rotated")
STATE_DTYPES = ("float32", "bfloat16")
ROUNDINGS = ("kahan", "nearest")
KERNELS = ("auto", "plain", "foreach")

# What None stands for, by mode and structure. Calibrated γ stays None: it changes when the dense warm-up ends.
PUBLISHED: dict[str, Any] = {"damping": 1e-3, "gamma": 0.8, "update_warmup": 0, "token_stride": 1}
DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    ("calibrated", "diagonal"): {"damping": 0.1, "update_warmup": 100, "token_stride": 1},
    ("calibrated", "kronecker"): {"damping": 0.3, "update_warmup": 100, "token_stride": 4},
    ("paper", "diagonal"): PUBLISHED,
    ("reference", "diagonal"): PUBLISHED,
}

TRAINER_ARGUMENTS = {"lr": "learning_rate", "learning_rate": "learning_rate", "weight_decay": "weight_decay"}


@dataclass(frozen=True)
class Interval:
    """A range of numbers; ``low`` belongs to it unless ``open_low``, a finite ``high`` never does."""

    low: float
    high: float = math.inf
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.open_low else self.low <= value) and value < self.high

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"in {'(' if self.open_low else '['}{self.low}, {self.high})"
        return f"{'>' if self.open_low else '>='} {self.low}"


def _knob(default: Any, allowed: Interval | tuple[str, ...], help: str) -> Any:
    return field(default=default, metadata={"allowed": allowed, "help": help})


@dataclass(frozen=True, kw_only=True)
class AdaFisherConfig:
    """The knobs of AdaFisher and AdaFisherW, apart from learning rate and weight decay.

    None stands for the default of the mode; ``resolved()`` fills it in.

    Raises:
        TypeError: an unknown knob, or a value of the wrong type.
        ValueError: a value out of range, or an unknown choice.
    """

    beta: float = _knob(
        0.9, Interval(0, 1), "decay of the momentum; the Trainer gives adam_beta1 unless it is set here"
    )
    mode: str = _knob(
        "calibrated",
        MODES,
        "calibrated: scale-free, AdamW's learning rates; paper: eq. 3-4; reference: the authors' code",
    )
    damping: float | None = _knob(
        None,
        Interval(0, open_low=True),
        "calibrated: multiple τ of the mean curvature (0.1, kronecker 0.3); paper, reference: the constant λ (0.001)",
    )
    beta2: float = _knob(0.95, Interval(0, 1), "decay of the gradient scale σ (calibrated only)")
    gamma: float | None = _knob(
        None,
        Interval(0, 1),
        "decay of the curvature factors a refresh (calibrated: 0.95 in the dense warm-up, then 0.8; else 0.8)",
    )
    update_interval: int = _knob(10, Interval(1), "steps between two refreshes of the curvature")
    update_warmup: int | None = _knob(
        None, Interval(0), "refresh at every step for so many steps first (calibrated: 100; else 0)"
    )
    structure: str = _knob(
        "diagonal", STRUCTURES, "diagonal: two vectors a weight; kronecker: full factors in their eigenbasis"
    )
    max_factor_dim: int = _knob(
        1024, Interval(1), "kronecker: a side of a weight longer than this keeps a diagonal factor"
    )
    basis_interval: int = _knob(10, Interval(1), "kronecker: refreshes between two eigenbases of a parameter")
    second_moment: str = _knob(
        "factors",
        SECOND_MOMENTS,
        "kronecker: curvature in the basis from the factors' eigenvalues, or an EMA of the squared rotated gradient",
    )
    token_stride: int | None = _knob(
        None, Interval(1), "take the statistics of every so many tokens of a sequence (diagonal: 1; kronecker: 4)"
    )
    state_dtype: str = _knob(
        "float32",
        STATE_DTYPES,
        "of the momentum (float64 for float64 parameters if float32 is asked for); all else is float32 at least",
    )
    rounding: str = _knob(
        "kahan",
        ROUNDINGS,
        "of half-precision weights: kahan keeps what rounding cuts off in one more half-precision buffer",
    )
    kernel: str = _knob("auto", KERNELS, "implementation of the update")

    # Keys of a newer version, so that a load and a save lose nothing.
    _unknown: ClassVar[Mapping[str, Any]] = types.MappingProxyType({})

    def __post_init__(self) -> None:
        for knob in dataclasses.fields(self):
            object.__setattr__(self, knob.name, _checked(knob, getattr(self, knob.name)))
        if self.structure == "kronecker" and self.mode != "calibrated":
            raise ValueError(f"structure='kronecker' needs mode='calibrated', got mode={self.mode!r}")

    @classmethod
    def from_knobs(cls, knobs: Mapping[str, Any]) -> AdaFisherConfig:
        """The config of an optimizer's keyword arguments.

        Raises:
            TypeError: an unknown knob, named with the closest valid one, or a value of the wrong type.
            ValueError: a value out of range.
        """
        for name in knobs:
            if name not in _knobs():
                raise TypeError(f"unknown argument {name!r}{_did_you_mean(name, _knobs())}")
        return cls(**knobs)

    def resolved(self) -> AdaFisherConfig:
        """The same with the defaults of its mode and structure in place of None."""
        defaults = DEFAULTS[self.mode, self.structure]
        return self._with({key: value for key, value in defaults.items() if getattr(self, key) is None})

    def to_dict(self) -> dict[str, Any]:
        """The knobs, as keyword arguments of the constructor and of the optimizers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_optim_args(cls, optim_args: str | None, *, defaults: Mapping[str, Any] | None = None) -> AdaFisherConfig:
        """Reads ``TrainingArguments.optim_args``: ``"damping=0.1,update_interval=10"``.

        ``config=PATH`` (a file, or a folder that holds ``adafisher_config.json``) is read first, wherever it stands;
        the other keys override it. Values are written as in Python, and None as ``none``.

        Args:
            optim_args: the string; None and "" stand for the defaults.
            defaults: knobs that count only where neither the string nor its config says anything.

        Raises:
            TypeError: ``optim_args`` is no string, or the config has a value of the wrong type.
            ValueError: an unknown key, a malformed pair, a key given twice, a value that does not fit its knob, a
                learning rate or a weight decay (they belong into TrainingArguments), or an invalid config.
            FileNotFoundError: no config at PATH.
        """
        if not isinstance(optim_args, str | None):
            raise TypeError(f"optim_args must be a string such as 'gamma=0.9,damping=0.1', got {optim_args!r}")
        pairs = _split_pairs(optim_args or "")
        path = pairs.pop("config", None)
        values = {key: _parse(_known_knob(key), text) for key, text in pairs.items()}
        if path is None:
            return cls(**{**(defaults or {}), **values})
        base = cls.from_pretrained(path)
        return base._unresolved(values)._with(values)

    def to_optim_args(self) -> str:
        """The string that ``from_optim_args`` reads back as this config; only what differs from the defaults."""
        changed = {
            knob.name: getattr(self, knob.name)
            for knob in dataclasses.fields(self)
            if getattr(self, knob.name) != knob.default
        }
        return ",".join(f"{key}={'none' if value is None else value}" for key, value in changed.items())

    def save_pretrained(
        self, save_directory: str | os.PathLike, *, push_to_hub: bool = False, **hub_options: Any
    ) -> None:
        """Writes ``adafisher_config.json`` into a folder, made if it does not exist.

        Args:
            save_directory: the folder.
            push_to_hub: also upload it, to ``repo_id`` or a repository named like the folder.
            hub_options: arguments of :meth:`push_to_hub`.

        Raises:
            NotADirectoryError: ``save_directory`` is a file.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise NotADirectoryError(f"save_directory must be a folder, {str(folder)!r} is a file")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_NAME).write_text(self._to_json(), encoding="utf-8")
        if push_to_hub:
            self.push_to_hub(hub_options.pop("repo_id", folder.resolve().name), **hub_options)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike) -> AdaFisherConfig:
        """Reads what ``save_pretrained`` wrote. Keys that this version does not know are kept, with a warning.

        Args:
            path: the folder, or the file itself.

        Raises:
            FileNotFoundError: nothing there.
            TypeError: no JSON object, or a value of the wrong type.
            ValueError: no JSON, or a value out of range.
        """
        file = Path(path)
        file = file / CONFIG_NAME if file.is_dir() else file
        if not file.is_file():
            raise FileNotFoundError(f"no AdaFisher config at {str(file)!r}: give a folder that holds a {CONFIG_NAME}")
        content = _read_json_object(file)
        content.pop("version", None)
        unknown = {key: content.pop(key) for key in list(content) if key not in _knobs()}
        if unknown:
            warnings.warn(
                f"{file} has keys that this version of adafisher_hf does not know: {_listed(unknown)}", stacklevel=2
            )
        try:
            config = cls(**content)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{file}: {error}") from None
        return config._with({}, unknown)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload AdaFisher config",
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Uploads ``adafisher_config.json`` to a model repository of the Hub, made if it does not exist.

        Returns:
            The address of the commit.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return api.upload_file(
            path_or_fileobj=self._to_json().encode(),
            path_in_repo=CONFIG_NAME,
            repo_id=repo_id,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        ).commit_url

    def _with(self, changes: Mapping[str, Any], unknown: Mapping[str, Any] | None = None) -> AdaFisherConfig:
        changed = dataclasses.replace(self, **changes)
        object.__setattr__(changed, "_unknown", dict(self._unknown if unknown is None else unknown))
        return changed

    def _unresolved(self, changes: Mapping[str, Any]) -> AdaFisherConfig:
        # A saved config is a resolved one: its τ = 0.1 must not become λ = 0.1 when another mode is asked for.
        if all(changes.get(choice, getattr(self, choice)) == getattr(self, choice) for choice in ("mode", "structure")):
            return self
        stale = DEFAULTS[self.mode, self.structure]
        return self._with({key: None for key, value in stale.items() if getattr(self, key) == value})

    def _to_json(self) -> str:
        content = {"version": FORMAT_VERSION, **self.to_dict(), **self._unknown}
        return json.dumps(content, indent=2) + "\n"


def knob_help() -> str:
    """All knobs, one paragraph each: what ``--help`` prints and the documentation shows."""
    return "\n".join(
        f"  {knob.name} = {knob.default}  ({_allowed_text(knob)})\n      {knob.metadata['help']}"
        for knob in _knobs().values()
    )


@functools.cache
def _knobs() -> dict[str, dataclasses.Field]:
    return {knob.name: knob for knob in dataclasses.fields(AdaFisherConfig)}


@functools.cache
def _types() -> dict[str, tuple[type, ...]]:
    """The types of each knob, by its name: ``(float, NoneType)``."""
    hints = typing.get_type_hints(AdaFisherConfig)
    return {name: typing.get_args(hint) or (hint,) for name, hint in hints.items()}


def _allowed_text(knob: dataclasses.Field) -> str:
    allowed = knob.metadata["allowed"]
    if isinstance(allowed, tuple):
        return "one of " + ", ".join(map(repr, allowed))
    noun = "an integer" if int in _types()[knob.name] else "a number"
    return f"{noun} {allowed}" + (", or none" if types.NoneType in _types()[knob.name] else "")


def _checked(knob: dataclasses.Field, value: Any) -> Any:
    """The value as the type of its knob."""
    allowed, kinds = knob.metadata["allowed"], _types()[knob.name]
    complaint = f"{knob.name} must be {_allowed_text(knob)}, got {value!r}"
    if value is None and types.NoneType in kinds:
        return None
    if str in kinds:
        if not isinstance(value, str):
            raise TypeError(complaint)
    elif isinstance(value, bool) or not isinstance(value, numbers.Integral if int in kinds else numbers.Real):
        raise TypeError(complaint)
    else:
        value = kinds[0](value)
    if value not in allowed:
        raise ValueError(complaint)
    return value


def _split_pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for pair in text.split(",") if text.strip() else ():
        key, equals, value = (part.strip() for part in pair.partition("="))
        # A path may hold a "=" itself, a number may not.
        if not (key and equals and value) or ("=" in value and key != "config"):
            raise ValueError(f"malformed optim_args pair {pair.strip()!r}: write key=value, with commas between pairs")
        if key in pairs:
            raise ValueError(f"optim_args key {key!r} is given twice")
        pairs[key] = value
    return pairs


def _known_knob(key: str) -> dataclasses.Field:
    if key in TRAINER_ARGUMENTS:
        raise ValueError(f"optim_args cannot set {key!r}: use TrainingArguments.{TRAINER_ARGUMENTS[key]}")
    if key not in _knobs():
        valid = [*_knobs(), "config"]
        raise ValueError(f"unknown optim_args key {key!r}{_did_you_mean(key, valid)} (valid keys: {_listed(valid)})")
    return _knobs()[key]


def _did_you_mean(name: str, valid: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _parse(knob: dataclasses.Field, text: str) -> Any:
    kinds = _types()[knob.name]
    if types.NoneType in kinds and text.lower() == "none":
        return None
    try:
        return _checked(knob, kinds[0](text))
    except ValueError:
        raise ValueError(f"optim_args: {knob.name} must be {_allowed_text(knob)}, got {text!r}") from None


def _read_json_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise TypeError(f"{file} must hold a JSON object, got {type(content).__name__}")
    return content


def _listed(names: Any) -> str:
    return ", ".join(names)
