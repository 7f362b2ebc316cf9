"""AdaFisher under TRL: supervised fine-tuning on BBC News, or with --dpo preferences between two ways to go on.

    python examples/sft_trl.py --output_dir runs/sft --do_train --do_eval --optim adafisherw --learning_rate 3e-3 \\
        --bf16 false --gradient_checkpointing false --max_length 128 --max_steps 100 --max_eval_samples 100 \\
        --compare adamw_torch
    python examples/sft_trl.py --dpo --output_dir runs/dpo --do_train --do_eval --optim adafisherw \\
        --learning_rate 3e-4 --model_name_or_path runs/sft --bf16 false --gradient_checkpointing false \\
        --max_steps 50 --max_eval_samples 100 --compare adamw_torch

Without --model_name_or_path the model is a small Llama with random weights.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from datasets import Dataset
from transformers import Trainer, TrainingArguments, set_seed
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import adafisher_hf  # noqa: F401 - makes --optim adafisherw known
from comparison import train_and_compare
from data.bbc import load_distinct
from data.continuations import preferences
from data.limits import LimitArguments, first
from data.split import hold_out
from errors import InputError, plain_errors
from modeling import ModelArguments, load_config, load_model, load_tokenizer
from training import parse, train_and_evaluate

EVALUATED = 0.1
MakeTrainer = Callable[..., Trainer]


@dataclass
class MethodArguments(LimitArguments):
    """What is learned of the articles, and by which model."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "A pretrained model, or 'smollm2'."})
    dpo: bool = field(
        default=False, metadata={"help": "Learn to prefer an article's own second half to that of another article."}
    )


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the whole thing and returns the last metrics.

    Raises:
        InputError: what the user gave cannot work; nothing has been trained or overwritten.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    # TRL's trainers each need arguments of their own kind, which are therefore chosen before anything is read.
    training: type[TrainingArguments] = DPOConfig if "--dpo" in argv else SFTConfig
    method, comparison, args = parse(argv, __doc__, MethodArguments, training=training)
    texts = hold_out([article.text for article in load_distinct()], EVALUATED)
    evaluation, train = (rows(part, method.dpo) for part in texts)
    model_args = ModelArguments(model_name_or_path=method.model_name_or_path)
    tokenizer = load_tokenizer(model_args, texts[1])
    config = load_config(model_args, tokenizer)

    def run(args: TrainingArguments) -> dict[str, float]:
        set_seed(args.seed)
        trainer_class: MakeTrainer = DPOTrainer if method.dpo else SFTTrainer
        model = load_model(model_args, config, tokenizer)
        # Given, because TRL would load it by its name, which a fresh model does not have.
        reference = {"ref_model": copy.deepcopy(model)} if method.dpo else {}
        trainer = trainer_class(
            model=model,
            args=args,
            train_dataset=first(train, method.max_train_samples),
            eval_dataset=first(evaluation, method.max_eval_samples),
            processing_class=tokenizer,
            **reference,
        )
        if len(trainer.train_dataset) == 0:  # type: ignore[arg-type]
            raise InputError("--max_length is too short for any of the training text")
        return train_and_evaluate(trainer)

    metric = "eval_rewards/accuracies" if method.dpo else "eval_mean_token_accuracy"
    return train_and_compare(run, args, comparison, ["eval_loss", metric])


def rows(texts: Sequence[str], dpo: bool) -> Dataset:
    return Dataset.from_list(preferences(texts) if dpo else [{"text": text} for text in texts])


if __name__ == "__main__":
    with plain_errors():
        main()
