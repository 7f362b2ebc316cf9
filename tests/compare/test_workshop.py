"""Processes, and what is kept of them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from adafisher_hf.compare.plan import Job
from adafisher_hf.compare.program import Program
from adafisher_hf.compare.run import Run, last_error
from adafisher_hf.compare.workshop import PATIENCE, Workshop

from .fakes import ADAMW, OURS

LAUNCHER = (sys.executable, str(Path(__file__).with_name("launcher.py")))
GOOD = Job(OURS, 1e-3, 0)


@pytest.fixture
def workshop(tmp_path):
    (tmp_path / "train.py").write_text("")

    def make(versions: str = "1", **options) -> Workshop:
        program = Program((str(tmp_path / "train.py"),), ("--max_steps", "3"))
        return Workshop(tmp_path / "runs", program, LAUNCHER, {"torch": versions}, **options)

    return make


def wait(shop: Workshop) -> tuple[Job, Run]:
    while (ended := shop.poll()) is None:
        pass
    return ended


def make(shop: Workshop, job: Job) -> Run:
    shop.start(job)
    assert shop.running == [job]
    done, run = wait(shop)
    assert done == job and shop.running == []
    return run


def test_a_run_leaves_its_record_its_log_and_what_a_report_needs_but_no_model(workshop, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.3")  # long enough to be looked at
    large = bytearray(2**30)  # the size of the process that starts it is not its own
    run = make(workshop(), GOOD)
    del large
    assert run.error is None and run.record.last("eval_loss") == pytest.approx(1)
    assert 0 < run.seconds < 30
    assert 2**20 < run.peak_bytes < 2**30, "an interpreter takes some MiB"
    assert run.log.read_text() == "trains with adafisherw\n"
    kept = {path.name for path in run.folder.iterdir()}
    assert kept == {"adafisher_config.json", "log.txt", "record.json", "run.json", "trainer_state.json"}
    assert "--learning_rate 0.001" in json.loads((run.folder / "run.json").read_text())["command"]


def test_what_a_script_saves_stays_on_request(workshop):
    run = make(workshop(keep_output=True), GOOD)
    assert (run.folder / "output/model.safetensors").stat().st_size == 1000


def test_a_finished_run_is_found_again(workshop):
    shop = workshop()
    assert shop.find(GOOD) is None
    run = make(shop, GOOD)
    assert workshop().find(GOOD) == run and run.at_once == 1
    for other in (Job(ADAMW, 1e-3, 0), Job(OURS, 3e-3, 0), Job(OURS, 1e-3, 1)):
        assert workshop().find(other) is None


def test_a_run_that_shared_the_machine_is_known_as_that_later(workshop):
    run = make(workshop(at_once=2), GOOD)
    assert run.at_once == 2 and workshop().find(GOOD) == run


def test_another_version_or_another_script_is_another_run(workshop, tmp_path):
    make(workshop(), GOOD)
    assert workshop(versions="2").find(GOOD) is None
    (tmp_path / "train.py").write_text("edited = True")
    assert workshop().find(GOOD) is None


@pytest.mark.parametrize(
    ("lr", "error"),
    [
        (1.0, "ValueError: no such data"),
        (2.0, "without a training"),
        (3.0, "SIGKILL (out of memory?)"),
        (5.0, "RuntimeError: no room"),
    ],
)
def test_a_crash_is_told_by_its_error_and_made_again_the_next_time(workshop, lr, error):
    job = Job(OURS, lr, 0)
    run = make(workshop(), job)
    assert error in run.error and run.record.evaluations == []
    assert run.log.exists() and workshop().find(job) is None
    assert make(workshop(), job).error == run.error


def test_a_run_that_was_cut_short_is_made_anew(workshop):
    shop = workshop()
    folder = shop.folder_of(GOOD)
    folder.mkdir(parents=True)
    (folder / "half").touch()
    assert shop.find(GOOD) is None
    assert make(shop, GOOD).error is None and not (folder / "half").exists()


def test_several_run_at_once_and_stop_when_they_are_told_to(workshop):
    shop = workshop(at_once=2)
    slow = [Job(OURS, 4.0, 0), Job(OURS, 4.0, 1)]
    for job in slow:
        assert shop.has_room
        shop.start(job)
    assert not shop.has_room and shop.running == slow
    start = time.monotonic()
    shop.stop()
    assert time.monotonic() - start < PATIENCE, "they were asked, not waited for"
    assert shop.running == [] and shop.find(slow[0]) is None


@pytest.mark.parametrize(
    ("log", "error"),
    [
        ("", ""),
        ("a\nsome error\n\n", "some error"),
        ("Traceback (most recent call last):\n  File x\n    f()\nKeyError: 'a'\n", "KeyError: 'a'"),
        ("Traceback (most recent call last):\n  x\nValueError: one\nmore\nand more\n", "ValueError: one"),
        (
            "Traceback (most recent call last):\n  x\nA: 1\n\nTraceback (most recent call last):\n  y\nB: 2\nend",
            "B: 2",
        ),
        ("x" * 1000, "x" * 300 + "…"),
    ],
)
def test_the_line_that_says_what_went_wrong(log, error):
    assert last_error(log) == error
