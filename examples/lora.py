"""LoRA: small matrices beside the frozen weights of a pretrained model are what is trained."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from errors import InputError

ALL_LINEAR = "all-linear"


@dataclass
class LoraArguments:
    """Whether to train adapters instead of the whole model."""

    lora_r: int = field(default=0, metadata={"help": "Rank of the LoRA adapters; 0 trains the whole model."})
    lora_alpha: int | None = field(
        default=None, metadata={"help": "The adapters count lora_alpha / lora_r times. Default: twice."}
    )
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Names of the layers that get adapters. Default: all linear ones."}
    )

    def __post_init__(self) -> None:
        if self.lora_r < 0:
            raise InputError(f"--lora_r must be at least 0, got {self.lora_r}")
        if self.lora_r == 0 and (self.lora_alpha is not None or self.lora_target_modules):
            raise InputError("--lora_alpha and --lora_target_modules need a --lora_r of 1 or more")


def with_adapters(model: PreTrainedModel, args: LoraArguments) -> nn.Module:
    """The model itself where no adapters are wanted.

    Raises:
        InputError: the model has no layer of a name that was given.
    """
    if args.lora_r == 0:
        return model
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha or 2 * args.lora_r,
        target_modules=args.lora_target_modules or ALL_LINEAR,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        names = " ".join(args.lora_target_modules or [ALL_LINEAR])
        raise InputError(f"--lora_target_modules {names}: {str(error).splitlines()[0]}") from error
