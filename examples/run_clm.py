"""Trains or fine-tunes a causal language model with AdaFisher through the Hugging Face Trainer.

With no data and no model it trains a small Llama-style model on BBC News articles; the flags are those of
transformers' own run_clm.py, and every flag of TrainingArguments:

    python examples/run_clm.py --output_dir runs/news --do_train --do_eval --optim adafisherw --learning_rate 3e-3
    python examples/run_clm.py --output_dir runs/mine --do_train --do_eval --optim adafisherw --train_file my.txt \\
        --model_name_or_path some/model

The same command again goes on from the last complete checkpoint in --output_dir.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import (
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.training_args import OptimizerNames

# Importing adafisher_hf is what makes --optim adafisherw known.
from adafisher_hf import AdaFisherTrainer
from checkpoints import last_complete, output_folder, starting_point
from data.text import TEXT, DataArguments, Texts, load_corpus
from data.tokens import to_blocks
from errors import InputError, plain_errors
from metrics.language import language_metrics, most_likely
from modeling import ModelArguments, choose_block_size, load_model, load_tokenizer, longest_block
from plotting import plot_training

INTERRUPTED = 130  # the exit status of a program that Ctrl-C ended
LOSS_CURVE = "loss_curve.png"


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the whole thing and returns the last metrics.

    Raises:
        InputError: what the user gave cannot work; nothing has been trained or overwritten.
    """
    model_args, data_args, args = parse(argv)
    checkpoint = starting_point(args) if args.do_train else None
    if checkpoint is not None and args.should_log:
        print(f"going on from {checkpoint} (--resume_from_checkpoint false starts anew)")
    set_seed(args.seed)
    with args.main_process_first(desc="preparing the text"):
        model, tokenizer, train, evaluation = prepare(model_args, data_args, args)
    trainer = AdaFisherTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=tokenizer,
        data_collator=default_data_collator,
        compute_metrics=language_metrics if evaluation is not None else None,
        preprocess_logits_for_metrics=most_likely if evaluation is not None else None,
    )
    metrics: dict[str, float] = {}
    if args.do_train:
        metrics |= run_training(trainer, checkpoint)
    if args.do_eval:
        metrics |= run_evaluation(trainer)
    if args.do_train:
        publish(trainer, model_args, data_args)
        if trainer.is_world_process_zero():
            say_where(trainer)
    return metrics


def parse(argv: Sequence[str] | None) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Reads the flags, or a JSON file with them if that is the only argument."""
    argv = sys.argv[1:] if argv is None else list(argv)
    kinds = (ModelArguments, DataArguments, TrainingArguments)
    parser = HfArgumentParser(kinds, description=str(__doc__).splitlines()[0])  # type: ignore[arg-type]
    try:
        if len(argv) == 1 and argv[0].endswith(".json"):
            model_args, data_args, args = parser.parse_json_file(argv[0])
        else:
            model_args, data_args, args = parser.parse_args_into_dataclasses(argv)
    except (OSError, TypeError, ValueError) as error:
        raise InputError(str(error)) from error
    if not (args.do_train or args.do_eval):
        raise InputError("nothing to do: give --do_train, --do_eval or both")
    if "loss" not in args.include_for_metrics:
        args.include_for_metrics.append("loss")
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False  # torch would warn at every loader that there is nothing to pin for
    return model_args, data_args, args


def prepare(
    model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Dataset | None, Dataset | None]:
    """Loads text, tokenizer and model, and cuts the text into blocks."""
    corpus = load_corpus(data_args, model_args.cache_dir, model_args.token)
    tokenizer = load_tokenizer(model_args, corpus.train and corpus.train.rows[TEXT])
    model = load_model(model_args, tokenizer)
    block_size = choose_block_size(model_args, data_args.block_size, longest_block(model.config, tokenizer))

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
    return model, tokenizer, train, evaluation


def run_training(trainer: Trainer, checkpoint: str | None) -> dict[str, float]:
    """Trains and saves the model, the metrics and the Trainer's state in the output folder."""
    try:
        result = trainer.train(resume_from_checkpoint=checkpoint)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command again goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    trainer.save_model()
    trainer.save_state()
    trainer.log_metrics("train", result.metrics)
    trainer.save_metrics("train", result.metrics)
    return result.metrics


def run_evaluation(trainer: Trainer) -> dict[str, float]:
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    return metrics


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
    }
    print()
    for what, place in places.items():
        if place is not None and place.exists():
            print(f"{what + ':':18}{place}")


if __name__ == "__main__":
    with plain_errors():
        main()
