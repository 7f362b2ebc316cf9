"""The tasks of fine-tuning: a problem, how long it is learned, and what counts besides the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from . import finetuners
from .arms import Arm
from .contestants import ARMS as FROM_SCRATCH
from .finetuning import FineTuning
from .materials import causal, encoders, translation, vision

Metric = Literal["accuracy", "f1", "exact"]
RANK = 8


@dataclass(frozen=True)
class Task:
    """What is learned.

    Attributes:
        title: the model and the data.
        metric: of ``Scores``.
        coordinates: what every arm tunes.
    """

    title: str
    problem: FineTuning
    steps: int
    arms: Sequence[Arm]
    metric: Metric = "accuracy"
    coordinates: Sequence[str] = ("lr",)

    @property
    def adapters(self) -> bool:
        return self.arms is finetuners.LORA_ARMS


def _encoder(name: str, title: str, prepare: Any, *, length: int, lora: bool, metric: Metric = "accuracy") -> Task:
    sizes = {"max_length": length, **_rank(lora)}
    problem = FineTuning(name, prepare, 16, sizes)
    return Task(f"MiniLM{_with(lora)}, {title}", problem, 200, _arms(lora), metric)


def _causal(
    name: str, title: str, prepare: Any, size: int, *, lora: bool, metric: Metric = "accuracy", **sizes: int
) -> Task:
    problem = FineTuning(name, prepare, size, {**sizes, "lora_r": RANK if lora else 0}, next_token=True)
    return Task(f"SmolLM2-135M{_with(lora)}, {title}", problem, 200, _arms(lora), metric)


def _digits(lora: bool) -> Task:
    problem = FineTuning("mnist", vision.mnist, 32, {"hidden_size": 64, "lora_r": RANK if lora else 0})
    return Task(f"ViT{_with(lora)}, the other half of the digits", problem, 200, _arms(lora))


def _rank(lora: bool) -> dict[str, int]:
    return {"lora_r": RANK} if lora else {}


def _with(lora: bool) -> str:
    return " with LoRA" if lora else ""


def _arms(lora: bool) -> Sequence[Arm]:
    return finetuners.LORA_ARMS if lora else finetuners.FULL_ARMS


def _both(name: str, make: Any) -> dict[str, Task]:
    return {name: make(lora=False), f"{name}-lora": make(lora=True)}


TASKS = {
    **_both("sentences", partial(_encoder, "sentences", "movie sentences", encoders.sentences, length=48)),
    **_both("tweets", partial(_encoder, "tweets", "tweets", encoders.tweets, length=48, metric="f1")),
    **_both("topics", partial(_encoder, "topics", "topics of BBC News", encoders.topics, length=48)),
    "phonemes-lora": _causal(
        "phonemes", "how words sound", causal.phonemes, 4, lora=True, metric="exact", evaluated=120
    ),
    "phonemes-t5": Task(
        "T5 from scratch, how words sound",
        FineTuning("phonemes-t5", translation.phonemes, 64, {"evaluated": 800, "d_model": 128}),
        600,
        FROM_SCRATCH,
        "exact",
        ("lr", "ratio"),
    ),
    "verses-lora": _causal("verses", "King James to Basic English", causal.verses, 2, lora=True, evaluated=48),
    **_both("news", partial(_causal, "news", "BBC News", causal.news, 2, block_size=64, evaluated=32)),
    **_both("digits", _digits),
}
