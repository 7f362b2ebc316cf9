"""What a model card says about the optimizer: a tag, the arguments, a section at the end.

The section's first line has a checksum of the card around it, so that a card which someone has edited is known.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from huggingface_hub.repocard import metadata_save
from transformers import Trainer

from .. import __version__
from ..optimizer import AdaFisher

TAG = "adafisher"
CITATION = """\
@inproceedings{martinsgomes2025adafisher,
  title     = {AdaFisher: Adaptive Second Order Optimization via Fisher Information},
  author    = {Martins Gomes, Damien and Zhang, Yanlei and Belilovsky, Eugene and Wolf, Guy and Hosseini, Mahdi S.},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2405.16397}
}
"""
SECTION = """\
<!-- adafisher_hf {checksum} -->
### Optimizer

This model was trained with {optimizer} ([paper](https://arxiv.org/abs/2405.16397)) of adafisher_hf {version} and \
learning_rate={lr}, weight_decay={weight_decay}, {knobs}. To train the same way:

```python
import adafisher_hf
from transformers import TrainingArguments

args = TrainingArguments(
    output_dir="out",
    optim="{name}",
    optim_args="{optim_args}",
    learning_rate={lr},
    weight_decay={weight_decay},
)
```

### Citation

```bibtex
{citation}```
<!-- end of adafisher_hf -->
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


@contextmanager
def resolved_arguments(trainer: Trainer, optimizer: AdaFisher) -> Iterator[None]:
    """Within it the Trainer's arguments name the optimizer that it has, with every argument: what its card prints."""
    args = trainer.args
    trainer.args = copy.copy(args)
    trainer.args.optim = optimizer.name
    trainer.args.optim_args = optimizer.config.to_optim_args(explicit=True)
    try:
        yield
    finally:
        trainer.args = args


def tags_of(card: str) -> list[str]:
    """The tags in the metadata of a card."""
    tags = _metadata(card).get("tags") or []
    return [tags] if isinstance(tags, str) else list(tags)


def add_to_card(file: Path, optimizer: AdaFisher, repo: str | None, *, tags: Iterable[str], edited: bool) -> None:
    """Adds tags and section to a card, or brings the section up to date that it has.

    Args:
        file: the card.
        repo: USER/REPO or USER/REPO@REVISION where ``adafisher_config.json`` will be; None: not known.
        tags: what it must be tagged with, beside ``adafisher``.
        edited: someone wrote in it: it stays theirs, whatever else is added.
    """
    card = file.read_text(encoding="utf-8")
    present = tags_of(card)
    missing = [tag for tag in dict.fromkeys((*tags, TAG)) if tag not in present]
    if missing:
        metadata_save(file, {**_metadata(card), "tags": [*present, *missing]})
        card = file.read_text(encoding="utf-8")
    section = _section(optimizer, repo, checksum="edited" if edited else _checksum(card))
    found = FOUND.search(card)
    before, after = (card[: found.start()], card[found.end() :]) if found else (f"{card.rstrip()}\n\n", "")
    file.write_text(before + section + after, encoding="utf-8")


def _section(optimizer: AdaFisher, repo: str | None, *, checksum: str) -> str:
    knobs = optimizer.config.to_optim_args(explicit=True)
    return SECTION.format(
        checksum=checksum,
        optimizer=type(optimizer).__name__,
        name=optimizer.name,
        version=__version__,
        lr=float(optimizer.defaults["lr"]),
        # The Trainer itself leaves norms and biases out of the decay.
        weight_decay=max(group["weight_decay"] for group in optimizer.param_groups),
        knobs=knobs.replace(",", ", "),
        optim_args=f"config={repo}" if repo else knobs,
        citation=CITATION,
    )


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
