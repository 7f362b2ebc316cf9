"""A model from its config alone, on the meta device: neither weights nor a network are needed."""

from __future__ import annotations

import difflib
import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CommandError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

LONGEST = 300  # characters of somebody else's message

TASKS = {
    "auto": "",
    "base": "AutoModel",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "multiple-choice": "AutoModelForMultipleChoice",
    "image-classification": "AutoModelForImageClassification",
    "image-text-to-text": "AutoModelForImageTextToText",
    "speech-seq2seq": "AutoModelForSpeechSeq2Seq",
}


def build_on_meta(name: str, task: str) -> nn.Module:
    """A model whose parameters have shapes and no memory.

    Args:
        name: a folder with a ``config.json``, a config file, a model type of transformers, or a model of the Hub whose
            config is in the cache.
        task: of TASKS; ``auto`` is what the config says.

    Raises:
        CommandError: no usable config, or it has no model for this task.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    config = _load_config(name)
    try:
        with torch.device("meta"):
            return _from_config(config, task)
    except Exception as error:  # whatever a model's constructor may raise: it is about this config, not about us
        raise CommandError(f"cannot build {name!r} for the task {task!r}: {_one_line(error)}") from error


def _from_config(config: PretrainedConfig, task: str) -> nn.Module:
    import transformers

    from ..compat import has_model_for

    def auto(task: str) -> Any:
        return getattr(transformers, TASKS[task])

    if task != "auto":
        return auto(task).from_config(config)
    for architecture in config.architectures or ():
        if hasattr(transformers, architecture):
            return getattr(transformers, architecture)(config)
    # Bart and the like have a causal LM as well, their decoder alone, which is not what they are for.
    likely = ("seq2seq-lm", "causal-lm") if config.is_encoder_decoder else ("causal-lm",)
    known = (task for task in likely if has_model_for(auto(task), config))
    return auto(next(known, "base")).from_config(config)


def _load_config(name: str) -> PretrainedConfig:
    from transformers import CONFIG_MAPPING

    if os.path.exists(name):
        return _read_config(name, f"no usable model config in {name!r}")
    if name in CONFIG_MAPPING:
        try:
            return CONFIG_MAPPING[name]()
        except Exception as error:  # whatever a config's own check may raise: its defaults are not ours
            raise CommandError(f"the model type {name!r} has no usable default config: {_one_line(error)}") from error
    repo = _cached_repo(name)
    if repo is not None:
        return _read_config(repo, f"no usable model config of {repo!r} in the Hugging Face cache")
    raise CommandError(
        f"unknown model {name!r}: give a folder with a config.json, a config file, a model of the Hub that is in the "
        f"Hugging Face cache (this one is not), or a model type of transformers{_types_like(name)}"
    )


def _read_config(place: str, complaint: str) -> PretrainedConfig:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CommandError(f"{complaint}: {_one_line(error)}") from error


def _cached_repo(name: str) -> str | None:
    """The repository of the Hub that a name stands for, if its config has been downloaded; the old ones lack a user."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import HFValidationError

    known = sorted(Path(HF_HUB_CACHE).glob(f"models--*--{glob.escape(name)}")) if "/" not in name else []
    for repo in (name, *(folder.name.removeprefix("models--").replace("--", "/", 1) for folder in known)):
        try:
            if isinstance(try_to_load_from_cache(repo, "config.json"), str):
                return repo
        except HFValidationError:  # no name of a repository
            pass
    return None


def _types_like(name: str) -> str:
    from transformers import CONFIG_MAPPING

    types = sorted(CONFIG_MAPPING.keys())
    begins = [kind for kind in types if name.lower().startswith(kind)]
    close = [*sorted(begins, key=len, reverse=True), *difflib.get_close_matches(name, types, n=1)]
    return (
        f" (did you mean {close[0]!r}?)" if close else f" (such as gpt2, llama, bert, t5, vit; all: {', '.join(types)})"
    )


def _one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
