"""Warnings have a line of their own beside progress bars."""

from __future__ import annotations

import io
import logging
import sys

from tqdm.auto import tqdm

from adafisher_hf.statistics.telling import warn


def test_a_bar_is_cleared_before_a_warning_and_drawn_after_it(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    logger = logging.Logger("one")
    logger.addHandler(logging.StreamHandler(terminal))
    with tqdm(total=3, file=terminal, ncols=40, mininterval=0) as bar:
        bar.update()
        warn(logger, "look: %s", "here")
    before, _, after = terminal.getvalue().partition("look: here")
    line = before.rpartition("\n")[2].split("\r")[-1]
    assert "1/3" in before and line == ""  # the cursor is at the start of an empty line
    assert "1/3" in after


def test_without_bars_it_is_a_warning(caplog, monkeypatch):
    monkeypatch.delitem(sys.modules, "tqdm", raising=False)
    warn(logging.getLogger("two"), "look")
    assert caplog.messages == ["look"]
