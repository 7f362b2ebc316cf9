"""OptimizerConfig: the options of any optimizer, as keyword arguments, as a string, as a file, and on the Hub."""

from __future__ import annotations

import dataclasses
import json
import os
import types
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from .content import parse_json, read_text
from .knobs import checked, knobs_of, shown, suggestion
from .strings import read, write

FORMAT_VERSION = 1

Config = TypeVar("Config", bound="OptimizerConfig")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The options of an optimizer, apart from learning rate and weight decay, which belong to the Trainer.

    A subclass is a dataclass as well, frozen and ``kw_only``, and each of its fields is a ``knob`` with a default::

        @dataclass(frozen=True, kw_only=True)
        class LionConfig(OptimizerConfig):
            file_name = "lion_config.json"
            title = "Lion config"

            beta: float = knob(0.9, Interval(0, 1), "decay of the momentum")

    Attributes:
        file_name: of the file that ``save_pretrained`` writes.
        title: what messages call it.

    Raises:
        TypeError: an unknown knob, or a value of the wrong type.
        ValueError: a value out of range, or an unknown choice.
    """

    file_name: ClassVar[str] = "optimizer_config.json"
    title: ClassVar[str] = "optimizer config"

    # Keys of a newer version, so that a load and a save lose nothing.
    _unknown: ClassVar[Mapping[str, Any]] = types.MappingProxyType({})

    def __post_init__(self) -> None:
        for name in knobs_of(type(self)):
            object.__setattr__(self, name, checked(type(self), name, getattr(self, name)))

    @classmethod
    def from_knobs(cls: type[Config], knobs: Mapping[str, Any]) -> Config:
        """The config of an optimizer's keyword arguments.

        Args:
            knobs: some of the fields.

        Raises:
            TypeError: an unknown knob, named with the closest valid one or with whose it is, or a value of the wrong
                type.
            ValueError: a value out of range.
        """
        for name in knobs:
            if name not in knobs_of(cls):
                raise TypeError(f"unknown argument {name!r}{suggestion(name, cls)}")
        return cls(**knobs)

    def resolved(self: Config) -> Config:
        """The same with a value in place of every None that stands for one. Here: as it is."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """The knobs, as keyword arguments of the constructor and of the optimizers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_optim_args(
        cls: type[Config],
        optim_args: str | None,
        *,
        defaults: Mapping[str, Any] | None = None,
        token: bool | str | None = None,
    ) -> Config:
        """Reads ``TrainingArguments.optim_args``: ``"damping=0.1,update_interval=10"``.

        ``config=PATH`` (a file, or a folder that holds one of this config's name) or ``config=USER/REPO`` (on the Hub,
        at a branch, tag or commit with ``config=USER/REPO@REVISION``) is read first, wherever it stands; the other keys
        override it. Values are written as in Python, and None as ``none``.

        Args:
            optim_args: the string; None and "" stand for the defaults.
            defaults: knobs that count only where neither the string nor its config says anything.
            token: of the repository that ``config=`` names, as in :meth:`from_pretrained`.

        Raises:
            TypeError: ``optim_args`` is no string, or the config has a value of the wrong type.
            ValueError: an unknown key, a malformed pair, a key given twice, a value that does not fit its knob, a
                learning rate or a weight decay (they belong into TrainingArguments), or an invalid config.
            OSError: the config cannot be had, as in :meth:`from_pretrained`.
        """
        values, source = read(optim_args, cls)
        if source is None:
            return cls(**{**(defaults or {}), **values})
        from .hub import split_revision

        place, revision = split_revision(source)
        base = cls.from_pretrained(place, revision=revision, token=token)
        return base._unresolved(values)._with(values)

    def to_optim_args(self, *, explicit: bool = False) -> str:
        """The string that ``from_optim_args`` reads back as this config.

        Args:
            explicit: name every knob, not only those that differ from the defaults.
        """
        knobs = knobs_of(type(self))
        return write({k: v for k, v in self.to_dict().items() if explicit or v != knobs[k].default})

    def save_pretrained(
        self, save_directory: str | os.PathLike, *, push_to_hub: bool = False, **hub_options: Any
    ) -> None:
        """Writes the file of this config into a folder, made if it does not exist.

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
        (folder / self.file_name).write_text(self._to_json(), encoding="utf-8")
        if push_to_hub:
            self.push_to_hub(hub_options.pop("repo_id", folder.resolve().name), **hub_options)

    @classmethod
    def from_pretrained(
        cls: type[Config],
        path_or_repo_id: str | os.PathLike,
        *,
        revision: str | None = None,
        token: bool | str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        subfolder: str = "",
    ) -> Config:
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
        from .hub import Wanted, locate

        file = locate(
            path_or_repo_id,
            Wanted(cls.file_name, cls.title, cls.__name__),
            subfolder=subfolder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        try:
            return cls._from_json(read_text(file), name=str(file))
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
        """Uploads the file of this config to a model repository of the Hub, made if it does not exist.

        Arguments and effect are those of transformers' ``PushToHubMixin``: a repository without a model card gets an
        empty one, ``tags`` are added to the card, and ``max_shard_size`` is of no use for a file this small.

        Returns:
            The address of the commit, a ``huggingface_hub.CommitInfo``.

        Raises:
            PermissionError: the Hub refused the token.
            OSError: the upload failed otherwise; what the repository held before is unchanged.
        """
        from .hub import push

        return push(
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

    def _with(self: Config, changes: Mapping[str, Any], unknown: Mapping[str, Any] | None = None) -> Config:
        changed = dataclasses.replace(self, **changes)
        object.__setattr__(changed, "_unknown", dict(self._unknown if unknown is None else unknown))
        return changed

    def _unresolved(self: Config, changes: Mapping[str, Any]) -> Config:
        """What is left of a saved config before ``changes`` are made: a default that they make stale goes."""
        return self

    @classmethod
    def _of_saved(cls: type[Config], content: Mapping[str, Any]) -> Config:
        """The config of a file that this package has written."""
        return cls(**content)

    @classmethod
    def _from_json(cls: type[Config], text: str, *, name: str) -> Config:
        content = parse_json(text)
        if not isinstance(content, dict):
            raise TypeError(f"the file must hold a JSON object, got {type(content).__name__}")
        unknown = {key: content.pop(key) for key in list(content) if key not in knobs_of(cls)}
        was_saved = "version" in unknown
        version = unknown.pop("version", FORMAT_VERSION)
        if isinstance(version, bool) or not isinstance(version, int):
            raise TypeError(f"version must be an integer, got {shown(version)}")
        config = cls._of_saved(content) if was_saved else cls(**content)
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
