"""LoRA on a model, or the whole model."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lora import ALL_LINEAR


def adapted(model: PreTrainedModel, r: int, kind: TaskType | None = None, head: str | None = None) -> nn.Module:
    """The model with adapters of this rank beside all linear layers, counted twice; as it is for rank 0.

    Args:
        kind: of model, where PEFT has one for it.
        head: the name of a new head, if the kind does not say so; it is trained whole.
    """
    if not r:
        return model
    whole: dict[str, Any] = {} if head is None else {"modules_to_save": [head], "exclude_modules": [head]}
    return get_peft_model(model, LoraConfig(r=r, lora_alpha=2 * r, target_modules=ALL_LINEAR, task_type=kind, **whole))
