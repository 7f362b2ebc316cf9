"""A model without weights, on the meta device: no memory and no network are needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import adapters, classes, configs
from .errors import CommandError, one_line

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

MODEL_HELP = (
    "a checkpoint's folder (its config.json or adapter_config.json), a config file, a model type of transformers "
    "(gpt2), a class of transformers (GPT2LMHeadModel), any other class or function that makes a model without "
    "arguments (package.module:Class), or a model of the Hub whose config is in the cache"
)
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
        name: see MODEL_HELP.
        task: of TASKS; ``auto`` is what the config says.

    Raises:
        CommandError: no such model, no usable config, or it has no model for this task.
    """
    import torch
    import transformers
    from torch import nn

    transformers.logging.set_verbosity_error()
    if adapters.are_in(name):
        config = adapters.read(name)
        base = build_on_meta(config.base_model_name_or_path, adapters.task_of(config) if task == "auto" else task)
        return adapters.put_on(base, config)
    make = _maker(name, task)
    try:
        with torch.device("meta"):
            model = make()
    except Exception as error:  # whatever a model's constructor may raise: it is about this model, not about us
        purpose = "" if task == "auto" else f" for the task {task!r}"
        raise CommandError(f"cannot build {name!r}{purpose}: {one_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise CommandError(f"{name!r} makes a {type(model).__name__}, not a model (torch.nn.Module)")
    return model


def _maker(name: str, task: str) -> Callable[[], Any]:
    """What makes the model; it takes no arguments."""
    from transformers import PretrainedConfig, PreTrainedModel

    found = _class(name)
    if found is None:
        config = configs.load(name)
        return lambda: _from_config(config, task)
    kind = found if isinstance(found, type) else object
    if issubclass(kind, PretrainedConfig):
        return lambda: _from_config(kind(), task)
    if task != "auto":
        raise CommandError(f"--task chooses the model of a config, and {name!r} is a model: leave it out")
    return (lambda: found(found.config_class())) if issubclass(kind, PreTrainedModel) else found


def _class(name: str) -> Any:
    """The class or function of this name; None: it names a config."""
    if os.path.exists(name):
        return None
    return classes.find(name) if ":" in name else classes.of_transformers(name)


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
