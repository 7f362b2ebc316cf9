"""Finished runs in one JSON file. It is whole at every moment, so a benchmark may be killed and started again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from errors import InputError

from .runner import Run


class Journal:
    """Runs by their setting.

    Raises:
        InputError: the file is not a journal.
    """

    def __init__(self, path: Path):
        self.path = path
        self._entries: list[dict[str, Any]] = []
        self._runs: dict[str, Run] = {}
        if path.exists():
            try:
                self._entries = json.loads(path.read_text())["runs"]
                self._runs = {_key(entry["setting"]): Run(**entry["run"]) for entry in self._entries}
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path}: not a file of benchmark runs") from error

    def find(self, setting: dict[str, Any]) -> Run | None:
        return self._runs.get(_key(setting))

    def add(self, setting: dict[str, Any], run: Run) -> None:
        self._entries.append({"setting": setting, "run": run.to_json()})
        self._runs[_key(setting)] = run
        self._write()

    def run_once(self, setting: dict[str, Any], run: Callable[[], Run]) -> Run:
        """The run of this setting, made now unless an earlier one is at hand."""
        found = self.find(setting)
        if found is None:
            found = run()
            self.add(setting, found)
        return found

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.path.with_suffix(".tmp")
        scratch.write_text(json.dumps({"runs": self._entries}, indent=1))
        os.replace(scratch, self.path)


def _key(setting: dict[str, Any]) -> str:
    return json.dumps(setting, sort_keys=True)
