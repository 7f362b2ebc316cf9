"""Adapters that PEFT has saved, put on a base model: shapes alone, no weights are read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .errors import CommandError, one_line

if TYPE_CHECKING:
    from torch import nn

FILE = "adapter_config.json"
TASKS = {  # of PEFT, and what our --task calls them
    "CAUSAL_LM": "causal-lm",
    "FEATURE_EXTRACTION": "base",
    "QUESTION_ANS": "question-answering",
    "SEQ_2_SEQ_LM": "seq2seq-lm",
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
}


def are_in(folder: str) -> bool:
    """Whether a folder holds adapters."""
    return os.path.isfile(os.path.join(folder, FILE))


def read(folder: str) -> Any:
    """Their config, to be trained.

    Raises:
        CommandError: no peft, no usable config, or one that does not name its base model.
    """
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise CommandError(f'{folder!r} holds adapters, which need peft: pip install "adafisher-hf[peft]"') from error
    try:
        config = PeftConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever a file that somebody has edited may lead to
        raise CommandError(f"no usable {FILE} in {folder!r}: {one_line(error)}") from error
    if not config.base_model_name_or_path:
        raise CommandError(f"{os.path.join(folder, FILE)} does not say which model the adapters are for")
    config.inference_mode = False
    return config


def task_of(config: Any) -> str:
    """The task that the adapters were trained for; ``auto`` where PEFT does not say."""
    return TASKS.get(str(getattr(config.task_type, "value", config.task_type)), "auto")


def put_on(base: Any, config: Any) -> nn.Module:
    """The base model, frozen, with the adapters.

    Raises:
        CommandError: they do not fit.
    """
    import torch
    from peft import get_peft_model

    name = config.base_model_name_or_path  # PEFT puts its own in
    try:
        with torch.device("meta"):
            return get_peft_model(base, config)
    except Exception as error:  # whatever PEFT raises for modules that are not there
        raise CommandError(f"the adapters do not fit their base model {name!r}: {one_line(error)}") from error
