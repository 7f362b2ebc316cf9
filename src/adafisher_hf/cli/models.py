"""A model from its config alone, on the meta device: neither weights nor a network are needed."""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, Any

from .errors import CommandError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

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
        name: a folder with a ``config.json``, a config file, or a model type of transformers.
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
        raise CommandError(f"cannot build {name!r} for the task {task!r}: {_first_line(error)}") from error


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
    from transformers import CONFIG_MAPPING, AutoConfig

    if os.path.exists(name):
        try:
            return AutoConfig.from_pretrained(name, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise CommandError(f"no usable model config in {name!r}: {_first_line(error)}") from error
    if name in CONFIG_MAPPING:
        return CONFIG_MAPPING[name]()
    close = difflib.get_close_matches(name, CONFIG_MAPPING.keys(), n=1)
    raise CommandError(
        f"unknown model {name!r}: give a folder with a config.json, a config file, or a model type of transformers"
        + (f" (did you mean {close[0]!r}?)" if close else " (such as gpt2, llama, bert, t5, vit)")
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
