"""The first hour of a new user: the page's commands do, in a fresh environment, what the page says."""

from __future__ import annotations

import re
import runpy
import signal
import urllib.error
from types import SimpleNamespace

import pytest

from tests.docs.test_code_blocks import ROOT

HOUR = SimpleNamespace(**runpy.run_path(str(ROOT / "docs/generate_first_hour.py")))
NUMBER = re.compile(r"[\d.,:]*\d(?:e[+-]\d+)?")
MACHINE_S_OWN = (
    (re.compile(r"-[0-9a-f]{8}\b"), "-KEY"),  # of a run's folder
    (NUMBER, "N"),
    (re.compile(r"N (?:s|min)\b"), "N TIME"),
    (re.compile(r"[█▏▎▍▌▋▊▉]"), ""),
    (re.compile(r"(?<= left: ).*"), ""),  # what ran when it was stopped
    (re.compile(r"; in the time that .* though"), ""),  # of the verdict: by the clock
    (re.compile(r"-{2,}"), "-"),  # as wide as a column
    (re.compile(r"\s+"), " "),
)


def without_numbers(output: str) -> list[str]:
    """Its lines, without what another machine or another day prints otherwise."""
    for pattern, replacement in MACHINE_S_OWN[:-1]:
        output = pattern.sub(replacement, output)
    return [MACHINE_S_OWN[-1][0].sub(" ", line).strip() for line in output.splitlines() if line.strip()]


def shown_on_the_page() -> list[str]:
    """The output of every command, in order."""
    blocks = HOUR.BLOCK.findall(HOUR.PAGE.read_text(encoding="utf-8"))
    return [output.strip("\n") for block in blocks for output in HOUR.COMMAND.split(block)[1:]]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_prints_what_the_page_shows(tmp_path):
    try:
        played = list(HOUR.play(tmp_path))
    except urllib.error.URLError as error:
        pytest.skip(f"no run_clm.py of transformers: name one in UPSTREAM_RUN_CLM ({error})")
    for one, shown in zip(played, shown_on_the_page(), strict=True):
        missing = set(without_numbers(shown)) - set(without_numbers(one.output))
        assert not missing, f"{one.text}{one.output}"


def test_the_page_has_an_hour_of_everything():
    texts, interrupted = zip(*HOUR.commands(), strict=True)
    assert sum(interrupted) == 1 and texts[interrupted.index(True)] == texts[interrupted.index(True) + 1]
    whole = "".join(texts)
    for word in (
        "pip install",
        "--version",
        "--optim adafisherw",
        "compare",
        "report.html",
        "push_to_hub",
        "config=owner/",
    ):
        assert word in whole, word


def test_a_page_with_its_own_outputs_is_the_same_page():
    page = HOUR.PAGE.read_text(encoding="utf-8")
    texts = [text for text, _ in HOUR.commands()]
    played = [HOUR.Played(text, output, 0) for text, output in zip(texts, shown_on_the_page(), strict=True)]
    assert HOUR.written(page, played) == page
    other = [one._replace(output="other") for one in played]
    assert HOUR.written(page, other).count("other\n") >= len(texts)


def test_a_number_may_differ_and_a_word_may_not():
    assert without_numbers("| a | 5.811 ± 0.012 |\n| ----- | 1.3 min") == ["| a | N ± N |", "| - | N TIME"]
    assert without_numbers("1/8 runs |█▎  | 00:39, 04:37 left: x") == without_numbers(
        "2/8 runs |██▎ | 01:09, 02:37 left: y"
    )
    assert without_numbers("Take it") != without_numbers("Stay with it")


@pytest.mark.parametrize("inherited", [signal.default_int_handler, signal.SIG_IGN])
def test_a_shell_goes_on_after_an_interrupt(tmp_path, inherited):
    before = signal.signal(signal.SIGINT, inherited)
    shell = HOUR.Shell(tmp_path, {"PATH": "/usr/bin:/bin"})
    signal.signal(signal.SIGINT, before)
    try:
        assert shell.run("$ name=value\n") == ("$ name=value\n", "", 0)
        sleeper = "$ printf '0/8 runs\\r'; bash -c 'trap \"exit 130\" INT; printf \"1/8 runs\"; sleep 50 & wait'\n"
        assert shell.run(sleeper, interrupt=True)[1:] == ("1/8 runs^C", 130)
        assert shell.run("$ cat <<END\n> $name\n> END\n").output == "value"
        assert shell.run("$ false\n").status == 1
    finally:
        shell.close()
