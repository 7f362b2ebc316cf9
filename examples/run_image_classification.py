"""Trains a small vision transformer on handwritten digits with AdaFisher through the Hugging Face Trainer.

The digits come with scikit-learn:

    python examples/run_image_classification.py --output_dir runs/digits --do_train --do_eval --optim adafisherw \\
        --learning_rate 3e-3 --weight_decay 0.05 --lr_scheduler_type cosine --warmup_steps 0.1 \\
        --num_train_epochs 20 --per_device_train_batch_size 64 --logging_steps 50 --compare adamw_torch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from adafisher_hf import AdaFisherTrainer
from comparison import train_and_compare
from data.digits import SIDE, load_digits
from data.limits import LimitArguments, at_least_one
from errors import InputError, plain_errors
from metrics.classification import classification_metrics
from training import parse, train_and_evaluate

HEADS = 4


@dataclass
class VisionArguments(LimitArguments):
    """The size of the vision transformer."""

    hidden_size: int = field(default=64, metadata={"help": f"Width of the model, a multiple of {HEADS}."})
    num_hidden_layers: int = field(default=4, metadata={"help": "Its depth."})
    patch_size: int = field(default=2, metadata={"help": f"Side of a patch in pixels; an image has {SIDE} × {SIDE}."})

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "hidden_size", "num_hidden_layers", "patch_size")
        if self.hidden_size % HEADS:
            raise InputError(f"--hidden_size {self.hidden_size} is no multiple of the {HEADS} attention heads")
        if SIDE % self.patch_size:
            raise InputError(f"--patch_size {self.patch_size} does not divide the {SIDE} pixels of an image's side")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the whole thing and returns the last metrics.

    Raises:
        InputError: what the user gave cannot work; nothing has been trained or overwritten.
    """
    vision, comparison, args = parse(argv, __doc__, VisionArguments)
    train, evaluation = load_digits(vision)
    config = small_vit(vision, train.features["labels"].names)

    def run(args: TrainingArguments) -> dict[str, float]:
        set_seed(args.seed)
        trainer = AdaFisherTrainer(
            model=ViTForImageClassification(config),
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            compute_metrics=classification_metrics,
        )
        return train_and_evaluate(trainer)

    return train_and_compare(run, args, comparison, ["eval_accuracy", "eval_loss"])


def small_vit(args: VisionArguments, classes: Sequence[str]) -> ViTConfig:
    return ViTConfig(
        image_size=SIDE,
        patch_size=args.patch_size,
        num_channels=1,
        hidden_size=args.hidden_size,
        intermediate_size=4 * args.hidden_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=HEADS,
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
    )


if __name__ == "__main__":
    with plain_errors():
        main()
