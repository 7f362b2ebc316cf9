"""A training loop of one's own with accelerate and AdaFisher: a small Llama on BBC News.

python examples/accelerate_loop.py --output_dir runs/loop --learning_rate 3e-3 --max_steps 200 --compare adamw_torch
accelerate launch examples/accelerate_loop.py --max_steps 200
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    HfArgumentParser,
    PretrainedConfig,
    default_data_collator,
    get_cosine_schedule_with_warmup,
)

from adafisher_hf import AdaFisher, AdaFisherConfig, AdaFisherW
from comparison import SECONDS, CompareArguments, train_and_compare
from data.limits import at_least_one
from data.text import TEXT, DataArguments, load_corpus
from data.tokens import to_blocks, train_tokenizer
from errors import InputError, plain_errors
from modeling import SMALL_BLOCK, small_llama

WARMUP = 0.1


@dataclass
class LoopArguments:
    """What a Trainer's arguments would say."""

    output_dir: str | None = field(default="runs/loop", metadata={"help": "Where the model is saved."})
    optim: str = field(default="adafisherw", metadata={"help": "adafisherw, adafisher or adamw_torch."})
    optim_args: str | None = field(default=None, metadata={"help": "Options of AdaFisher: damping=0.3,..."})
    learning_rate: float = field(default=3e-3, metadata={"help": "The peak of the schedule."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to this norm."})
    max_steps: int = field(default=200, metadata={"help": "Optimizer steps."})
    batch_size: int = field(default=16, metadata={"help": "Blocks in a batch of a process."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches in an optimizer step."})
    max_eval_samples: int | None = field(default=200, metadata={"help": "Evaluate on so many blocks only."})
    seed: int = field(default=42, metadata={"help": "Seed of the weights and of the order of the data."})

    def __post_init__(self) -> None:
        at_least_one(self, "max_steps", "batch_size", "gradient_accumulation_steps", "max_eval_samples")
        if self.learning_rate <= 0:
            raise InputError(f"--learning_rate must be more than 0, got {self.learning_rate}")


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the whole thing and returns the last metrics.

    Raises:
        InputError: what the user gave cannot work; nothing has been trained or overwritten.
    """
    args, comparison = parse(argv)
    corpus = load_corpus(DataArguments())
    assert corpus.train is not None and corpus.validation is not None
    tokenizer = train_tokenizer(corpus.train.rows[TEXT])
    train = to_blocks(corpus.train, tokenizer, SMALL_BLOCK)
    evaluation = to_blocks(corpus.validation, tokenizer, SMALL_BLOCK, limit=args.max_eval_samples)
    config = small_llama(len(tokenizer))
    return train_and_compare(lambda args: run(args, config, train, evaluation), args, comparison, ["eval_loss"])


def parse(argv: Sequence[str] | None) -> tuple[LoopArguments, CompareArguments]:
    parser = HfArgumentParser((LoopArguments, CompareArguments), description=str(__doc__).splitlines()[0])  # type: ignore[arg-type]
    args, comparison = parser.parse_args_into_dataclasses(sys.argv[1:] if argv is None else list(argv))
    for flag, name in (("--optim", args.optim), ("--compare", comparison.compare)):
        if name is not None and name not in OPTIMIZERS:
            raise InputError(f"{flag} {name}: unknown here, expected one of {', '.join(OPTIMIZERS)}")
    try:
        AdaFisherConfig.from_optim_args(args.optim_args)
    except (TypeError, ValueError) as error:
        raise InputError(f"--optim_args {args.optim_args}: {error}") from error
    return args, comparison


def run(args: LoopArguments, config: PretrainedConfig, train: Dataset, evaluation: Dataset) -> dict[str, float]:
    """The loop."""
    set_seed(args.seed)
    accelerator = Accelerator(gradient_accumulation_steps=args.gradient_accumulation_steps)
    model = AutoModelForCausalLM.from_config(config)
    optimizer = OPTIMIZERS[args.optim](model, args)
    scheduler = get_cosine_schedule_with_warmup(optimizer, round(WARMUP * args.max_steps), args.max_steps)
    loaders = [
        DataLoader(rows, args.batch_size, shuffle=rows is train, collate_fn=default_data_collator)
        for rows in (train, evaluation)
    ]
    model, optimizer, scheduler, *loaders = accelerator.prepare(model, optimizer, scheduler, *loaders)
    started = time.perf_counter()
    for step, batch in zip(range(args.max_steps * args.gradient_accumulation_steps), endless(loaders[0]), strict=False):
        # In here steps are skipped until there are enough batches: those of the optimizer and of the schedule.
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if (step + 1) % (20 * args.gradient_accumulation_steps) == 0:
            accelerator.print(f"step {(step + 1) // args.gradient_accumulation_steps}  loss {loss.item():.3f}")
    seconds = time.perf_counter() - started
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save_pretrained(args.output_dir)
    metrics = {"eval_loss": evaluate(accelerator, model, loaders[1]), SECONDS: seconds}
    accelerator.print(f"{args.optim}: evaluation loss {metrics['eval_loss']:.4f} after {seconds:.1f} s")
    return metrics


def endless(loader: DataLoader) -> Iterator[dict[str, Tensor]]:
    while True:
        yield from loader


@torch.no_grad()
def evaluate(accelerator: Accelerator, model: nn.Module, loader: DataLoader) -> float:
    """The mean loss over all blocks, each counted once however many processes there are."""
    model.eval()
    losses = []
    for batch in loader:
        loss = model(**batch).loss
        losses.append(accelerator.gather_for_metrics(loss.repeat(len(batch["labels"]))))
    model.train()
    return torch.cat(losses).mean().item()


def adafisherw(model: nn.Module, args: LoopArguments, kind: type[AdaFisher] = AdaFisherW) -> torch.optim.Optimizer:
    options = AdaFisherConfig.from_optim_args(args.optim_args).to_dict()
    # The model, because the curvature comes from what its layers see: before accelerate wraps it.
    return kind(model.parameters(), model=model, lr=args.learning_rate, weight_decay=args.weight_decay, **options)


def adafisher(model: nn.Module, args: LoopArguments) -> torch.optim.Optimizer:
    return adafisherw(model, args, AdaFisher)


def adamw(model: nn.Module, args: LoopArguments) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)


OPTIMIZERS: dict[str, Callable[[nn.Module, LoopArguments], Any]] = {
    "adafisherw": adafisherw,
    "adafisher": adafisher,
    "adamw_torch": adamw,
}


if __name__ == "__main__":
    with plain_errors():
        main()
