"""Sentences of movie reviews and whether they are kind, rated by twenty readers each (Hutto and Gilbert 2014; MIT).

They are in the source distribution of ``vaderSentiment``, not in its wheel, and pip fetches it once.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from errors import InputError

from .labelled import Labelled, labelled_splits

VERSION = "3.3.2"
ARCHIVE = f"vaderSentiment-{VERSION}.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = f"vaderSentiment-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
CLEAR = 1.0  # of a mean rating between -4 and 4: below it readers did not agree what is meant
NAMES = ["unkind", "kind"]
HELD_OUT = 800


def load_sentences() -> Labelled:
    """Sentences with a clear rating, with columns text and label.

    Raises:
        InputError: they could not be fetched.
    """
    return labelled_splits(rated(fetch().read_bytes()), NAMES, HELD_OUT)


def rated(archive: bytes) -> dict[str, str]:
    """From the source distribution: the name of the class by sentence."""
    with _open(archive) as outer, _open(_read(outer, INNER)) as inner:
        lines = _read(inner, RATINGS).decode("utf-8").splitlines()
    rows = [line.split("\t", 2) for line in lines if line.strip()]
    return {text.strip(): NAMES[float(rating) > 0] for _, rating, text in rows if abs(float(rating)) > CLEAR}


def fetch(folder: Path | None = None) -> Path:
    """The source distribution, from a folder that keeps it.

    Raises:
        InputError: no package index can be reached, or it has another file under this name.
    """
    folder = folder or Path(HF_HOME) / "adafisher_hf"
    path = folder / ARCHIVE
    if not path.exists():
        to_run = ["download", "--quiet", "--no-deps", "--no-binary", ":all:", f"vaderSentiment=={VERSION}"]
        result = subprocess.run([sys.executable, "-m", "pip", *to_run, "--dest", str(folder)], check=False)
        if result.returncode:
            raise InputError(f"the movie sentences could not be fetched: pip {' '.join(to_run)} --dest {folder}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise InputError(f"{path}: not the file that is meant; remove it, and it will be fetched again")
    return path


def _open(archive: bytes) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(archive))


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()
