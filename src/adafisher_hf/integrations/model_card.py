"""What a model card says about the optimizer: a tag, the arguments, a section at the end.

The section's first line has a checksum of the card around it, so that a card which someone has edited is known.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]
from huggingface_hub.repocard import metadata_save
from transformers import Trainer, TrainingArguments

from ..config.base import OptimizerConfig
from .entries import OptimizerEntry, config_of, entry_of_optimizer, unwrapped

PACKAGE = __name__.partition(".")[0]
DISTRIBUTION = "adafisher-hf"
SECTION = """\
<!-- adafisher_hf {checksum} -->
### Optimizer

This model was trained with {optimizer}{paper} {origin} and \
learning_rate={lr}, weight_decay={weight_decay}{knobs}. To train the same way:

```python
import adafisher_hf  # noqa: F401
from transformers import TrainingArguments
{registration}
args = TrainingArguments(
    output_dir="out",
    optim="{name}",
    optim_args="{optim_args}",
    learning_rate={lr},
    weight_decay={weight_decay},
)
```
{citation}<!-- end of adafisher_hf -->
"""
CITATION = """
### Citation

```bibtex
{citation}```
"""
FOUND = re.compile(r"^<!-- adafisher_hf (?P<checksum>\w+) -->$.*?^<!-- end of adafisher_hf -->\n?", re.M | re.S)
METADATA = re.compile(r"\A\s*---\n(?P<yaml>.*?)^---$", re.M | re.S)
# Cards that a program left and that the Trainer replaces: its own, and the template of huggingface_hub that PEFT fills.
GENERATED = ("<!-- This model card has been generated automatically", "[More Information Needed]")
# What PEFT writes anew at every save, which is no edit.
REWRITTEN = ("base_model", "library_name", "model-index", "pipeline_tag", "tags")


def is_edited(card: str) -> bool:
    """Whether someone wrote this card, or changed one that was generated."""
    section = FOUND.search(card)
    if section is None:
        return bool(card.strip()) and not any(mark in card for mark in GENERATED)
    return section["checksum"] != _checksum(card)


class Subject(NamedTuple):
    """What a card is about: an optimizer, its options, and what is known of its kind."""

    optimizer: Any
    config: OptimizerConfig
    entry: OptimizerEntry


def subject_of(optimizer: Any, args: TrainingArguments) -> Subject | None:
    """The registered optimizer of a Trainer; None if it is none, or nothing tells its options."""
    entry, config = entry_of_optimizer(optimizer, args), config_of(optimizer, args)
    return None if entry is None or config is None else Subject(unwrapped(optimizer), config, entry)


@contextmanager
def resolved_arguments(trainer: Trainer, subject: Subject) -> Iterator[None]:
    """Within it the Trainer's arguments name the optimizer that it has, with every argument: what its card prints."""
    args = trainer.args
    trainer.args = copy.copy(args)
    trainer.args.optim = subject.entry.name
    trainer.args.optim_args = subject.config.to_optim_args(explicit=True)
    try:
        yield
    finally:
        trainer.args = args


def tags_of(card: str) -> list[str]:
    """The tags in the metadata of a card."""
    tags = _metadata(card).get("tags") or []
    return [tags] if isinstance(tags, str) else list(tags)


def add_to_card(file: Path, subject: Subject, repo: str | None, *, tags: Iterable[str], edited: bool) -> None:
    """Adds tags and section to a card, or brings the section up to date that it has.

    Args:
        file: the card.
        subject: what it is about.
        repo: USER/REPO or USER/REPO@REVISION where the config will be; None: not known.
        tags: what it must be tagged with, beside the optimizer's own tag.
        edited: someone wrote in it: it stays theirs, whatever else is added.
    """
    card = file.read_text(encoding="utf-8")
    present = tags_of(card)
    missing = [tag for tag in dict.fromkeys((*tags, subject.entry.tag)) if tag not in present]
    if missing:
        metadata_save(file, {**_metadata(card), "tags": [*present, *missing]})
        card = file.read_text(encoding="utf-8")
    section = _section(subject, repo, checksum="edited" if edited else _checksum(card))
    found = FOUND.search(card)
    before, after = (card[: found.start()], card[found.end() :]) if found else (f"{card.rstrip()}\n\n", "")
    file.write_text(before + section + after, encoding="utf-8")


def _section(subject: Subject, repo: str | None, *, checksum: str) -> str:
    optimizer, config, entry = subject
    knobs = config.to_optim_args(explicit=True)
    return SECTION.format(
        checksum=checksum,
        optimizer=type(optimizer).__name__,
        paper=f" ([paper]({entry.paper}))" if entry.paper else "",
        origin=f"{'of' if _is_ours(entry) else 'registered with'} {PACKAGE} {_version()}",
        registration="" if _is_ours(entry) else _registration(entry),
        name=entry.name,
        lr=float(optimizer.defaults["lr"]),
        # The Trainer itself leaves norms and biases out of the decay.
        weight_decay=max(group.get("weight_decay", 0.0) for group in optimizer.param_groups),
        knobs=knobs and ", " + knobs.replace(",", ", "),
        optim_args=f"config={repo}" if repo else knobs,
        citation=CITATION.format(citation=entry.citation) if entry.citation else "",
    )


def _is_ours(entry: OptimizerEntry) -> bool:
    return entry.load().__module__.partition(".")[0] == PACKAGE


def _registration(entry: OptimizerEntry) -> str:
    cls = entry.load()
    where = f"{cls.__module__}.{cls.__qualname__}"
    return f'\n# "{entry.name}" is {where}: register it first, see adafisher_hf.register_optimizer.\n'


def _version() -> str:
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:  # a source tree on the path, not installed
        return "(unknown version)"


def _checksum(card: str) -> str:
    """Of everything but our own section, of what PEFT writes anew, and of white space at the ends of lines."""
    kept = {k: v for k, v in _metadata(card).items() if k not in REWRITTEN}
    body = FOUND.sub("", METADATA.sub("", card, count=1))
    lines = "\n".join(line.rstrip() for line in body.strip().splitlines())
    return hashlib.sha256(f"{yaml.safe_dump(kept)}\n{lines}".encode()).hexdigest()[:12]


def _metadata(card: str) -> dict[str, Any]:
    found = METADATA.match(card)
    try:
        metadata = yaml.safe_load(found["yaml"]) if found else {}
    except yaml.YAMLError as error:
        raise ValueError(f"README.md: what stands between the two lines of --- is not valid YAML: {error}") from None
    if not isinstance(metadata, dict | None):
        raise ValueError("README.md: what stands between the two lines of --- must be keys with values")
    return metadata or {}
