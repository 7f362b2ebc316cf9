"""The bar, as a terminal shows it."""

from __future__ import annotations

import io
import re
import types

import pytest

from adafisher_hf.compare import progress
from adafisher_hf.compare.plan import Job
from adafisher_hf.compare.progress import Progress

from .fakes import ADAMW, OURS, crashed, done

JOBS = [Job(arm, lr, 0) for lr in (1e-3, 3e-3) for arm in (ADAMW, OURS)]
RUNS = {job: done(job, lambda job, step: 1.0) for job in JOBS}


class Terminal(io.StringIO):
    """Eighty columns wide."""

    def isatty(self) -> bool:
        return True

    @property
    def bar(self) -> str:
        """As it stands."""
        return re.split(r"[\r\n]", self.getvalue().rstrip())[-1]


@pytest.fixture
def terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(progress, "sys", types.SimpleNamespace(stderr=terminal))  # pytest changes sys.stderr itself
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (80, 24))
    return terminal


@pytest.fixture
def clock(monkeypatch):
    """Seconds, for the bar; to be set."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_what_is_left_is_in_sight_however_much_runs(terminal):
    with Progress(4) as bar:
        bar.tell(JOBS, {})
        assert terminal.bar.startswith("0/4 runs |") and "? left: adamw_torch lr=1e-3, seed 0" in terminal.bar
        assert len(terminal.bar) <= 80
    assert "left: ended" in terminal.bar


def test_the_rest_takes_as_long_as_what_was_made(terminal, clock):
    with Progress(4) as bar:
        bar.tell(JOBS[:1], {})
        clock[0] = 100.0
        bar.tell(JOBS[1:2], dict(list(RUNS.items())[:1]))
        assert "05:00 left" in terminal.bar


def test_runs_that_were_there_before_are_no_pace(terminal, clock):
    with Progress(4) as bar:
        bar.tell(JOBS[2:3], dict(list(RUNS.items())[:2]))
        assert terminal.bar.startswith("2/4 runs") and "? left" in terminal.bar
        clock[0] = 100.0
        bar.tell(JOBS[3:], dict(list(RUNS.items())[:3]))
        assert "01:40 left" in terminal.bar


def test_a_failure_is_a_line_of_its_own_once(terminal):
    with Progress(4) as bar:
        bar.tell(JOBS[:1], {})
        for _ in range(2):
            bar.tell(JOBS[1:2], {JOBS[0]: crashed(JOBS[0])})
    assert terminal.getvalue().count("failed: adamw_torch lr=1e-3, seed 0: RuntimeError: out of memory (runs/") == 1
