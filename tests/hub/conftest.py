"""A hub for the session, and people with a process of their own: huggingface_hub reads its environment at import."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.hub.server import Hub, serve

TOKEN = "hf_owner"


class Person:
    """Runs functions in a process that has its own token and cache, and the unmodified huggingface_hub."""

    def __init__(self, hub: Hub, home: Path, token: str | None = None) -> None:
        self.cache = home / "hub"
        settings = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
            "OMP_NUM_THREADS": "1",
            **({"HF_TOKEN": token} if token else {}),
        }
        unset = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE", *settings}
        kept = {key: value for key, value in os.environ.items() if key not in unset}
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_hurry)
        with patch.dict(os.environ, {**kept, **settings}, clear=True):
            self._pool.submit(os.getpid).result()  # starts the process

    def __call__(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        return self._pool.submit(function, *args, **kwargs).result(timeout=120)

    def forget(self) -> None:
        """Empties the cache."""
        shutil.rmtree(self.cache, ignore_errors=True)

    def leave(self) -> None:
        # Nothing is left to do: a process that loaded torch takes seconds to end by itself.
        for process in self._pool._processes.values():
            process.kill()
        self._pool.shutdown(cancel_futures=True)


def _hurry() -> None:
    """Waits a fiftieth of the seconds between two tries; everything else of huggingface_hub is as it is."""
    import torch
    from huggingface_hub.utils import _http

    torch.set_num_threads(1)
    _http.time = types.SimpleNamespace(sleep=lambda seconds: time.sleep(seconds / 50), time=time.time)


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    with serve({TOKEN: "owner"}) as running:
        yield running


@pytest.fixture(scope="session")
def owner(hub, tmp_path_factory) -> Iterator[Person]:
    person = Person(hub, tmp_path_factory.mktemp("owner"), TOKEN)
    yield person
    person.leave()


@pytest.fixture(scope="session")
def stranger_at_home(hub, tmp_path_factory) -> Iterator[Person]:
    person = Person(hub, tmp_path_factory.mktemp("stranger"))
    yield person
    person.leave()


@pytest.fixture
def stranger(stranger_at_home) -> Person:
    """Someone without a token who has downloaded nothing yet."""
    stranger_at_home.forget()
    return stranger_at_home


@pytest.fixture
def repo(request) -> str:
    """A name that no other test uses."""
    return "owner/" + re.sub(r"[^a-z0-9]+", "-", request.node.name)[:60].strip("-")
