"""MiniLM with a new head, and texts with a class each."""

from __future__ import annotations

from datasets import Dataset
from peft import TaskType
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from data.labelled import Labelled
from data.limits import LimitArguments
from data.sentences import load_sentences
from data.topics import load_topics
from data.tweets import load_tweets
from packaged import MINILM, locate
from run_classification import encode

from .adapters import adapted
from .material import Material, with_tuning


def topics(max_length: int, lora_r: int = 0) -> Material:
    """Articles of BBC News, and their topics."""
    return _material(with_tuning(*load_topics(LimitArguments())), max_length, lora_r)


def sentences(max_length: int, lora_r: int = 0) -> Material:
    """Sentences of movie reviews, kind or unkind."""
    return _material(load_sentences(), max_length, lora_r)


def tweets(max_length: int, lora_r: int = 0) -> Material:
    """Tweets: negative, neutral or positive."""
    return _material(load_tweets(), max_length, lora_r)


def _material(splits: Labelled, max_length: int, lora_r: int) -> Material:
    source = locate(MINILM)
    tokenizer = AutoTokenizer.from_pretrained(source.name, **source.options)
    classes = splits["train"].features["label"].num_classes

    def make_model() -> nn.Module:
        model = AutoModelForSequenceClassification.from_pretrained(source.name, num_labels=classes, **source.options)
        return adapted(model, lora_r, TaskType.SEQ_CLS)

    def encoded(rows: Dataset) -> Dataset:
        return encode(rows, tokenizer, max_length, tokenizer.model_max_length)

    return Material(
        {name: encoded(rows) for name, rows in splits.items()}, DataCollatorWithPadding(tokenizer), make_model
    )
