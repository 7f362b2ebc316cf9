"""AdaFisherConfig: every knob of the optimizers, once, with its default, range and help."""

from __future__ import annotations

import dataclasses
import json
import os
import types
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from . import optim_args as strings
from .knobs import Interval, checked, did_you_mean, help_of, knob, knobs_of

CONFIG_NAME = "adafisher_config.json"
FORMAT_VERSION = 1

MODES = ("calibrated", "paper", "reference")
STRUCTURES = ("diagonal", "kronecker")
SECOND_MOMENTS = ("factors", "rotated")
STATE_DTYPES = ("float32", "bfloat16")
ROUNDINGS = ("kahan", "nearest")
KERNELS = ("auto", "plain", "foreach")

# What None stands for, by mode and structure. Calibrated γ stays None: it changes when the dense warm-up ends; so does
# the stride of Kronecker factors, which goes by the number of tokens.
PUBLISHED: dict[str, Any] = {"damping": 1e-3, "gamma": 0.8, "update_warmup": 0, "token_stride": 1}
DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    ("calibrated", "diagonal"): {"damping": 0.1, "update_warmup": 100, "token_stride": 1},
    ("calibrated", "kronecker"): {"damping": 0.3, "update_warmup": 100},
    ("paper", "diagonal"): PUBLISHED,
    ("reference", "diagonal"): PUBLISHED,
}


@dataclass(frozen=True, kw_only=True)
class AdaFisherConfig:
    """The knobs of AdaFisher and AdaFisherW, apart from learning rate and weight decay.

    None stands for the default of the mode; ``resolved()`` fills it in.

    Raises:
        TypeError: an unknown knob, or a value of the wrong type.
        ValueError: a value out of range, or an unknown choice.
    """

    beta: float = knob(0.9, Interval(0, 1), "decay of the momentum; the Trainer gives adam_beta1 unless it is set here")
    mode: str = knob(
        "calibrated",
        MODES,
        "calibrated: scale-free, AdamW's learning rates; paper: eq. 3-4; reference: the authors' code",
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
        "diagonal", STRUCTURES, "diagonal: two vectors a weight; kronecker: full factors in their eigenbasis"
    )
    max_factor_dim: int = knob(
        1024, Interval(1), "kronecker: a side of a weight longer than this keeps a diagonal factor"
    )
    basis_interval: int = knob(10, Interval(1), "kronecker: refreshes between two eigenbases of a parameter")
    second_moment: str = knob(
        "factors",
        SECOND_MOMENTS,
        "kronecker: curvature in the basis from the factors' eigenvalues, or an EMA of the squared rotated gradient",
    )
    token_stride: int | None = knob(
        None,
        Interval(1),
        "take the statistics of every so many tokens (diagonal: 1; kronecker: up to 4, as long as a dense factor gets "
        "as many tokens as it has rows)",
    )
    state_dtype: str = knob(
        "float32",
        STATE_DTYPES,
        "of the momentum and of rotated second moments (float64 for float64 parameters if float32 is asked for); "
        "all else is float32 at least",
    )
    rounding: str = knob(
        "kahan",
        ROUNDINGS,
        "of half-precision weights: kahan keeps what rounding cuts off in one more half-precision buffer",
    )
    kernel: str = knob("auto", KERNELS, "implementation of the update")

    # Keys of a newer version, so that a load and a save lose nothing.
    _unknown: ClassVar[Mapping[str, Any]] = types.MappingProxyType({})

    def __post_init__(self) -> None:
        for name in knobs_of(AdaFisherConfig):
            object.__setattr__(self, name, checked(AdaFisherConfig, name, getattr(self, name)))
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
            if name not in knobs_of(cls):
                raise TypeError(f"unknown argument {name!r}{did_you_mean(name, knobs_of(cls))}")
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

        ``config=PATH`` (a file, or a folder that holds ``adafisher_config.json``) or ``config=USER/REPO`` (on the Hub,
        at a branch, tag or commit with ``config=USER/REPO@REVISION``) is read first, wherever it stands; the other keys
        override it. Values are written as in Python, and None as ``none``.

        Args:
            optim_args: the string; None and "" stand for the defaults.
            defaults: knobs that count only where neither the string nor its config says anything.

        Raises:
            TypeError: ``optim_args`` is no string, or the config has a value of the wrong type.
            ValueError: an unknown key, a malformed pair, a key given twice, a value that does not fit its knob, a
                learning rate or a weight decay (they belong into TrainingArguments), or an invalid config.
            OSError: the config cannot be had, as in :meth:`from_pretrained`.
        """
        values, source = strings.read(optim_args, cls)
        if source is None:
            return cls(**{**(defaults or {}), **values})
        from .integrations import hub

        place, revision = hub.split_revision(source)
        base = cls.from_pretrained(place, revision=revision)
        return base._unresolved(values)._with(values)

    def to_optim_args(self, *, explicit: bool = False) -> str:
        """The string that ``from_optim_args`` reads back as this config.

        Args:
            explicit: name every knob, not only those that differ from the defaults.
        """
        knobs = knobs_of(type(self))
        return strings.write({k: v for k, v in self.to_dict().items() if explicit or v != knobs[k].default})

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
    def from_pretrained(
        cls,
        path_or_repo_id: str | os.PathLike,
        *,
        revision: str | None = None,
        token: bool | str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        subfolder: str = "",
    ) -> AdaFisherConfig:
        """Reads what ``save_pretrained`` or ``push_to_hub`` wrote.

        Keys that this version does not know are kept, also by the next save, with a warning.

        Args:
            path_or_repo_id: a folder, the file itself, or a model repository of the Hub as USER/REPO.
            revision: branch, tag or commit of the repository; None: its main branch.
            token: of a private repository; None and True: that of ``hf auth login`` or HF_TOKEN; False: none.
            cache_dir: where downloads are kept; None: the cache of huggingface_hub.
            local_files_only: ask the cache only, as HF_HUB_OFFLINE=1 does for a whole process.
            force_download: download again what is in the cache.
            subfolder: of the folder or repository, where the file is.

        Raises:
            FileNotFoundError: no file there, no such repository or revision, or it is not in the cache when offline.
            PermissionError: the repository is gated, or the token was refused.
            ConnectionError: the Hub cannot be reached, and the file is not in the cache.
            TypeError: no JSON object, or a value of the wrong type.
            ValueError: no JSON, or a value out of range.
        """
        from .integrations import hub

        file = hub.locate(
            path_or_repo_id,
            CONFIG_NAME,
            subfolder=subfolder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        try:
            return cls._from_json(file.read_text(encoding="utf-8"), name=str(file))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{file}: {error}") from None

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = "50GB",
        tags: list[str] | None = None,
    ) -> str:
        """Uploads ``adafisher_config.json`` to a model repository of the Hub, made if it does not exist.

        Arguments and effect are those of transformers' ``PushToHubMixin``: a repository without a model card gets an
        empty one, ``tags`` are added to the card, and ``max_shard_size`` is of no use for a file this small.

        Returns:
            The address of the commit, a ``huggingface_hub.CommitInfo``.

        Raises:
            PermissionError: the Hub refused the token.
            OSError: the upload failed otherwise; what the repository held before is unchanged.
        """
        from .integrations import hub

        return hub.push(
            self,
            repo_id,
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            max_shard_size=max_shard_size,
            tags=tags,
        )

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

    @classmethod
    def _from_json(cls, text: str, *, name: str) -> AdaFisherConfig:
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ValueError(f"the content is not valid JSON: {error}") from None
        if not isinstance(content, dict):
            raise TypeError(f"the file must hold a JSON object, got {type(content).__name__}")
        unknown = {key: content.pop(key) for key in list(content) if key not in knobs_of(cls)}
        version = unknown.pop("version", FORMAT_VERSION)
        if isinstance(version, bool) or not isinstance(version, int):
            raise TypeError(f"version must be an integer, got {version!r}")
        config = cls(**content)
        if version > FORMAT_VERSION or unknown:
            warnings.warn(_newer(name, version, unknown), stacklevel=3)
        # What is kept of a newer format is still of that format.
        return config._with({}, {**({"version": version} if version > FORMAT_VERSION else {}), **unknown})

    def _to_json(self) -> str:
        content = {"version": FORMAT_VERSION, **self.to_dict(), **self._unknown}
        return json.dumps(content, indent=2) + "\n"


def _newer(name: str, version: int, unknown: Mapping[str, Any]) -> str:
    keys = f"has keys that this version of adafisher_hf does not know: {', '.join(unknown)} (kept, without effect)"
    if version > FORMAT_VERSION:
        found = f"{name} is of format version {version}, newer than {FORMAT_VERSION}: upgrade adafisher_hf"
        return f"{found}; it {keys}" if unknown else found
    return f"{name} {keys}"


def knob_help() -> str:
    """All knobs, one paragraph each: what ``--help`` prints and the documentation shows."""
    return help_of(AdaFisherConfig)
