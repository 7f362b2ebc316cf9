"""From documents to blocks: nothing lost, nothing on both sides of a split."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from data.bbc import load_articles
from data.split import hold_out
from data.text import DataArguments, Texts, load_corpus
from data.tokens import END_OF_TEXT, to_blocks, train_tokenizer
from metrics.token_accuracy import TokenAccuracy
from plotting import plot_training


def documents(*texts: str, running: bool = False) -> Texts:
    return Texts(Dataset.from_dict({"text": list(texts)}), running)


def test_articles_are_unique_whole_and_in_order():
    articles = load_articles()
    texts = [article.text for article in articles]
    assert len(texts) == len(set(texts)) == 2127
    assert {article.topic for article in articles} == {"business", "entertainment", "politics", "sports", "tech"}
    assert articles == load_articles()
    assert not any("\ufffd" in text for text in texts)
    assert sum("£" in text for text in texts) > 100


def test_parts_are_disjoint_and_the_first_does_not_depend_on_the_others():
    items = list(range(100))
    evaluation, tuning, training = hold_out(items, 0.1, 0.2)
    assert (len(evaluation), len(tuning), len(training)) == (10, 20, 70)
    assert sorted(evaluation + tuning + training) == items
    assert hold_out(items, 0.1)[0] == evaluation
    assert hold_out(items, 0.1, seed=1)[0] != evaluation
    assert [len(part) for part in hold_out([1, 2], 0.1)] == [1, 1]


@pytest.mark.parametrize("shares", [(0.0,), (1.0,), (0.6, 0.5), (-0.1,)])
def test_impossible_shares(shares):
    with pytest.raises(ValueError, match="shares"):
        hold_out([1, 2, 3], *shares)


def test_default_corpus_holds_articles_out_whole():
    corpus = load_corpus(DataArguments())
    train, validation = set(corpus.train.rows["text"]), set(corpus.validation.rows["text"])
    assert not train & validation
    assert len(validation) == 213


def test_running_text_is_cut_at_its_tail(tmp_path):
    lines = [f"line {number}\n" for number in range(50)]
    (tmp_path / "text.txt").write_text("".join(lines))
    corpus = load_corpus(DataArguments(train_file=str(tmp_path / "text.txt")), cache_dir=str(tmp_path / "cache"))
    assert corpus.train.rows["text"][:] == lines[:45]
    assert corpus.validation.rows["text"][:] == lines[45:]


def test_blocks_hold_the_documents_one_after_the_other():
    texts = ["first document, £5", "the second\none", "third"] * 20
    tokenizer = train_tokenizer(texts, 300)
    blocks = to_blocks(documents(*texts), tokenizer, 8)
    decoded = tokenizer.decode([token for block in blocks["input_ids"] for token in block])
    whole = END_OF_TEXT.join(texts) + END_OF_TEXT
    assert whole.startswith(decoded)
    assert len(blocks) == sum(len(tokenizer.encode(text)) + 1 for text in texts) // 8
    assert blocks["labels"][:] == blocks["input_ids"][:]


def test_nothing_is_put_between_the_lines_of_running_text():
    lines = ["one line\n", "another\n"] * 20
    tokenizer = train_tokenizer(lines, 300)
    blocks = to_blocks(documents(*lines, running=True), tokenizer, 4)
    assert tokenizer.eos_token_id not in np.ravel(blocks["input_ids"][:])


@pytest.mark.parametrize("running", [False, True])
def test_special_tokens_belong_around_documents(running):
    texts = ["one line\n", "another\n"] * 20
    tokenizer = train_tokenizer(texts, 300)
    end = (END_OF_TEXT, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {END_OF_TEXT}", special_tokens=[end])
    tokens = np.ravel(to_blocks(documents(*texts, running=running), tokenizer, 4)["input_ids"][:])
    # One after each document (not a second one), save what is left over at the end.
    assert np.isin((tokens == tokenizer.eos_token_id).sum(), [0] if running else [39, 40])


def test_limit():
    tokenizer = train_tokenizer(["some text"], 300)
    assert len(to_blocks(documents("some text" * 100), tokenizer, 4, limit=3)) == 3


def test_token_accuracy_leaves_ignored_tokens_out():
    metric = TokenAccuracy(keep_in_memory=True)
    score = metric.compute(predictions=np.array([[1, 2, 3], [4, 5, 6]]), references=np.array([[1, 0, -100], [4, 0, 6]]))
    assert score == {"token_accuracy": pytest.approx(3 / 5)}


@pytest.mark.parametrize(
    "history",
    [[], [{"step": 1, "loss": 2.0}], [{"step": 1, "eval_loss": 2.0}, {"step": 1, "eval_loss": 2.0}]],
    ids=["empty", "train", "eval"],
)
def test_a_curve_is_drawn_of_whatever_there_is(tmp_path, history):
    path = plot_training(history, tmp_path / "curve.png", "title")
    assert path.read_bytes().startswith(b"\x89PNG")
