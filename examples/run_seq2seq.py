"""Trains a small T5 to write the headline of a news article, with AdaFisher through the Seq2SeqTrainer.

The articles are BBC News; model and tokenizer start from nothing:

    python examples/run_seq2seq.py --output_dir runs/headlines --do_train --do_eval --optim adafisherw \\
        --learning_rate 3e-3 --lr_scheduler_type cosine --warmup_steps 0.1 --max_steps 300 \\
        --per_device_train_batch_size 32 --logging_steps 50 --compare adamw_torch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from adafisher_hf import AdaFisherSeq2SeqTrainer
from comparison import train_and_compare
from data.headlines import encode, load_headlines
from data.limits import LimitArguments, at_least_one
from data.tokens import train_tokenizer
from errors import InputError, plain_errors
from metrics.language import most_likely
from metrics.targets import target_metrics
from training import parse, train_and_evaluate

HEADS = 4


@dataclass
class HeadlineArguments(LimitArguments):
    """The size of the T5, and how much it reads and writes."""

    d_model: int = field(default=128, metadata={"help": f"Width of the model, a multiple of {HEADS}."})
    num_layers: int = field(default=2, metadata={"help": "Layers of the encoder, and of the decoder."})
    max_source_length: int = field(default=64, metadata={"help": "Tokens of an article that are read."})
    max_target_length: int = field(default=16, metadata={"help": "Tokens of a headline, with its end."})

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "d_model", "num_layers", "max_source_length")
        if self.d_model % HEADS:
            raise InputError(f"--d_model {self.d_model} is no multiple of the {HEADS} attention heads")
        if self.max_target_length < 2:
            raise InputError(
                f"--max_target_length must be at least 2, a token and the end, got {self.max_target_length}"
            )


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the whole thing and returns the last metrics.

    Raises:
        InputError: what the user gave cannot work; nothing has been trained or overwritten.
    """
    sizes, comparison, args = parse(argv, __doc__, HeadlineArguments, training=Seq2SeqTrainingArguments)
    if args.predict_with_generate:
        raise InputError("no --predict_with_generate: the token accuracy is of each token after the true ones")
    train, evaluation = load_headlines(sizes)
    tokenizer = train_tokenizer(text for article in train for text in article.values())
    train, evaluation = (
        encode(rows, tokenizer, sizes.max_source_length, sizes.max_target_length) for rows in (train, evaluation)
    )

    def run(args: Seq2SeqTrainingArguments) -> dict[str, float]:
        set_seed(args.seed)
        model = T5ForConditionalGeneration(small_t5(sizes, tokenizer))
        trainer = AdaFisherSeq2SeqTrainer(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=tokenizer,
            data_collator=DataCollatorForSeq2Seq(tokenizer, model),
            compute_metrics=target_metrics,
            preprocess_logits_for_metrics=most_likely,
        )
        return train_and_evaluate(trainer)

    return train_and_compare(run, args, comparison, ["eval_loss", "eval_token_accuracy"])


def small_t5(sizes: HeadlineArguments, tokenizer: PreTrainedTokenizerBase) -> T5Config:
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "d_model": sizes.d_model,
        "d_kv": sizes.d_model // HEADS,
        "d_ff": 2 * sizes.d_model,
        "num_layers": sizes.num_layers,
        "num_heads": HEADS,
        "feed_forward_proj": "gated-gelu",
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }
    return T5Config(**settings)


if __name__ == "__main__":
    with plain_errors():
        main()
