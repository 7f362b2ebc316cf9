"""From text to blocks of tokens, all of the same length."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

from datasets import Dataset
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from errors import InputError

from .text import TEXT, Texts, show_progress

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 2048
MANY_ROWS = 20_000


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of these texts: every text can be encoded, none is ever unknown."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=vocabulary, special_tokens=[END_OF_TEXT], show_progress=False)
    # The wrapper of the tokenizers library holds the real thing, which is what transformers saves.
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def to_blocks(
    texts: Texts,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    *,
    name: str = "training",
    limit: int | None = None,
    workers: int | None = None,
    overwrite_cache: bool = False,
) -> Dataset:
    """Tokenizes, concatenates and cuts; what is left over at the end of a thousand rows is dropped.

    Raises:
        InputError: there is not enough text for a single block.
    """
    separator = [] if texts.running or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def cut(batch: dict[str, list[str]]) -> dict[str, Any]:
        # Special tokens belong around documents, not around the lines of a text; verbose=False: no warning that a
        # document is longer than the model's context, since it is cut right after.
        rows = tokenizer(batch[TEXT], add_special_tokens=not texts.running, verbose=False)["input_ids"]
        tokens = list(chain.from_iterable(ids if ids[-1:] == separator else ids + separator for ids in rows))
        blocks = [tokens[i : i + block_size] for i in range(0, len(tokens) - block_size + 1, block_size)]
        return {"input_ids": blocks, "labels": blocks}

    show_progress(len(texts.rows) >= MANY_ROWS)
    blocks = texts.rows.map(
        cut,
        batched=True,
        remove_columns=[TEXT],
        num_proc=workers,
        load_from_cache_file=not overwrite_cache,
        desc=f"Cutting the {name} text into blocks of {block_size} tokens",
    )
    if len(blocks) == 0:
        raise InputError(
            f"the {name} text has less than one block of {block_size} tokens: a smaller --block_size or more text"
        )
    return blocks if limit is None else blocks.select(range(min(limit, len(blocks))))
