"""The config of a model by its name: of a folder, a file, a model type, or a model whose config is in the cache."""

from __future__ import annotations

import difflib
import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING

from . import classes
from .errors import CommandError, one_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig

FILE = "config.json"


def load(name: str) -> PretrainedConfig:
    """The config of this name. Nothing is downloaded.

    Raises:
        CommandError: there is none, or it cannot be used.
    """
    from transformers import CONFIG_MAPPING

    if os.path.exists(name):
        return _of_path(name)
    if name in CONFIG_MAPPING:
        try:
            return CONFIG_MAPPING[name]()
        except Exception as error:  # whatever a config's own check may raise: its defaults are not ours
            raise CommandError(f"the model type {name!r} has no usable default config: {one_line(error)}") from error
    repo = _cached_repo(name)
    if repo is not None:
        return _read(repo, f"no usable model config of {repo!r} in the Hugging Face cache")
    raise CommandError(
        f"unknown model {name!r}: give a checkpoint's folder, a config file, a model of the Hub that is in the Hugging "
        f"Face cache (this one is not), package.module:Class, or a class or model type of transformers{_like(name)}"
    )


def _of_path(path: str) -> PretrainedConfig:
    if os.path.isdir(path) and not os.path.exists(os.path.join(path, FILE)):
        from transformers.trainer_utils import get_last_checkpoint

        checkpoint = get_last_checkpoint(path)
        hint = f" (did you mean {checkpoint!r}?)" if checkpoint else ""
        raise CommandError(f"no {FILE} in the folder {path!r}{hint}")
    return _read(path, f"no usable model config in {path!r}")


def _read(place: str, complaint: str) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CommandError(f"{complaint}: {one_line(error)}") from error


def _cached_repo(name: str) -> str | None:
    """The repository of the Hub that a name stands for, if its config has been downloaded; the old ones lack a user."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError

    known = sorted(Path(HF_HUB_CACHE).glob(f"models--*--{glob.escape(name)}")) if "/" not in name else []
    for repo in (name, *(folder.name.removeprefix("models--").replace("--", "/", 1) for folder in known)):
        try:
            if isinstance(try_to_load_from_cache(repo, FILE), str):
                return repo
        except HFValidationError:  # no name of a repository
            pass
    return None


def _like(name: str) -> str:
    from transformers import CONFIG_MAPPING

    types = sorted(CONFIG_MAPPING.keys())
    begins = [kind for kind in types if name.lower().startswith(kind)]
    close = [
        *classes.like(name),
        *sorted(begins, key=len, reverse=True),
        *difflib.get_close_matches(name, types, n=1),
    ]
    return (
        f" (did you mean {close[0]!r}?)" if close else f" (such as gpt2, llama, bert, t5, vit; all: {', '.join(types)})"
    )
