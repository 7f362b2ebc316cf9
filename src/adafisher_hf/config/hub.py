"""Where the file of a config is found (a folder, the Hub, its cache), and how it gets to the Hub.

Imported when it is used: huggingface_hub takes its time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from .knobs import shown

# httpx's, or that of the library which huggingface_hub has put in its place.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]

REPO_ID = re.compile(r"[^\W_][\w.-]*/\w[\w.-]*")
LONGEST_REPO_ID = 96
LOG_IN = "log in (hf auth login, or HF_TOKEN in the environment)"


class Wanted(NamedTuple):
    """The file of a config.

    Attributes:
        file_name: ``adafisher_config.json``.
        title: what messages call its content.
        maker: the class that writes it.
    """

    file_name: str
    title: str
    maker: str

    @property
    def a_file(self) -> str:
        return f"{'an' if self.file_name[:1].lower() in 'aeiou' else 'a'} {self.file_name}"


class Savable(Protocol):
    """What can be pushed."""

    def save_pretrained(self, save_directory: str | os.PathLike) -> Any:
        """Writes its files into a folder."""


def split_revision(source: str) -> tuple[str, str | None]:
    """``USER/REPO@REVISION`` in two; what exists as a file or folder is left whole."""
    if _is(Path(source).exists):
        return source, None
    place, _, revision = source.partition("@")
    return place, revision or None


def locate(place: str | os.PathLike, wanted: Wanted, *, subfolder: str = "", **options: Any) -> Path:
    """The local path of a file that is in a folder or in a repository of the Hub.

    Args:
        place: the folder, the file itself, or USER/REPO.
        wanted: the file.
        subfolder: of the folder or repository.
        options: those of ``huggingface_hub.hf_hub_download``; without effect on what is local.

    Raises:
        FileNotFoundError, PermissionError, ConnectionError: it cannot be had; the message says what to do.
    """
    path = Path(place)
    file = path if _is(path.is_file) else path / subfolder / wanted.file_name
    if _is(file.is_file):
        return file
    if _is(path.is_dir) or not (isinstance(place, str) and REPO_ID.fullmatch(place) and len(place) <= LONGEST_REPO_ID):
        raise FileNotFoundError(
            f"no {wanted.title} at {shown(str(file))}: give a folder that holds {wanted.a_file}, "
            "or USER/REPO on the Hub"
        )
    return _download(str(place), wanted, subfolder=subfolder or None, **options)


def _is(what: Callable[[], bool]) -> bool:
    """No also where the system cannot be asked: a name that is too long, or with a letter that no file can have."""
    try:
        return what()
    except (OSError, ValueError):
        return False


def push(savable: Savable, repo_id: str, **options: Any) -> str:
    """Uploads a config; ``options`` are those of transformers' ``PushToHubMixin.push_to_hub``.

    Raises:
        PermissionError, ConnectionError: it did not work; the message says what to do.
    """
    from transformers.utils.hub import PushToHubMixin

    class PushedConfig(PushToHubMixin):  # transformers takes the message of the commit from this name
        def save_pretrained(self, save_directory: str | os.PathLike, **_: Any) -> None:
            savable.save_pretrained(save_directory)

    with explained(f"the config was not pushed to {repo_id!r}", "call push_to_hub again"):
        return PushedConfig().push_to_hub(repo_id, **options)


@contextmanager
def explained(what: str, remedy: str) -> Iterator[None]:
    """Turns the many errors of an upload into one that says what happened and what to do.

    Args:
        what: has happened, as the start of a sentence.
        remedy: what to do when the Hub answers again.

    Raises:
        PermissionError: the Hub refused the token.
        ConnectionError: the Hub could not be reached, or failed.
        OSError: the Hub refused what was asked for: a branch that does not exist, say.
    """
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        cause = _http_error(error)
        if cause is None:
            raise
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if status in (401, 403):
            raise PermissionError(
                f"{what}: the Hub refused the token (HTTP {status}): {LOG_IN} with a token that may write there, then "
                f"{remedy}"
            ) from error
        if isinstance(cause, OfflineModeIsEnabled):
            raise ConnectionError(f"{what}: HF_HUB_OFFLINE=1 is set: unset it, then {remedy}") from error
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())
        if status is not None and status < 500:
            raise OSError(f"{what}: the Hub refused it ({reason}). Correct that, then {remedy}") from error
        raise ConnectionError(f"{what}: {constants.ENDPOINT} failed ({reason}). When it answers, {remedy}") from error


def _download(repo_id: str, wanted: Wanted, **options: Any) -> Path:
    try:
        return Path(hf_hub_download(repo_id, wanted.file_name, **options))
    except (HTTPError, EntryNotFoundError, ValueError) as error:
        # A connection that is cut, unlike one that is refused, does not make huggingface_hub look into its cache.
        cut = isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError)
        cached = _cached(repo_id, wanted.file_name, **options) if cut and not options["force_download"] else None
        if cached is not None:
            return cached
        kind, reason = _reason(error, wanted, options)
        message = f"no {wanted.title} from {repo_id!r}: {reason}, or give a folder that holds {wanted.a_file}"
        raise kind(message) from error


def _reason(error: Exception, wanted: Wanted, options: dict[str, Any]) -> tuple[type[OSError], str]:
    """What to raise for an error of ``hf_hub_download``, and what to say: why it is, what to do."""
    if isinstance(error, GatedRepoError):
        return PermissionError, f"the repository is gated: ask for access on its page and {LOG_IN}"
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        where = "there is no such folder here and no such repository on the Hub, or it is private"
        return FileNotFoundError, f"{where}: check the name, {LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError, f"it has no branch, tag or commit {options['revision']!r}: check what it has"
    if isinstance(error, LocalEntryNotFoundError) and (options["local_files_only"] or constants.HF_HUB_OFFLINE):
        where = "there is no such folder here, it is not in the cache, and the Hub must not be asked"
        return FileNotFoundError, f"{where} (local_files_only or HF_HUB_OFFLINE=1): load it once with a connection"
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        how = f"push one with {wanted.maker}.push_to_hub or from an AdaFisherTrainer"
        return FileNotFoundError, f"the repository has no {wanted.file_name} there: {how}"
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return PermissionError, f"the Hub refused the token: {LOG_IN} with one that may read it"
    if options["force_download"]:
        return ConnectionError, f"force_download needs {constants.ENDPOINT}, which cannot be reached: leave it out"
    return ConnectionError, f"{constants.ENDPOINT} cannot be reached and the file is not in the cache: try again"


def _cached(
    repo_id: str, filename: str, *, subfolder: str | None, revision: str | None, cache_dir: Any, **_: Any
) -> Path | None:
    path = f"{subfolder}/{filename}" if subfolder else filename
    found = try_to_load_from_cache(repo_id, path, cache_dir=cache_dir, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _http_error(error: BaseException) -> BaseException | None:
    """What went wrong between here and the Hub, if this is why there is an error."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (HTTPError, OfflineModeIsEnabled)):
        cause = cause.__cause__
    return cause
