"""Plays the commands of first-hour.md in an empty folder, and writes what they print into the page.

    python docs/generate_first_hour.py

Blocks of ``console`` hold commands behind ``$`` and ``>``, and what they print. They run one after the other in one
shell. One whose output has a ``^C`` gets it as soon as its bar has counted a run. All that takes ten minutes, a
checkout with everything committed, and a network for ``pip``; the Hub is one of this machine. transformers' own
``run_clm.py`` comes from ``UPSTREAM_RUN_CLM``, a path, or else from GitHub.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.hub.server import serve  # noqa: E402

PAGE = ROOT / "docs/first-hour.md"
CHECKOUT = "adafisher-hf"
UPSTREAM = "https://raw.githubusercontent.com/huggingface/transformers/{}/examples/pytorch/language-modeling/run_clm.py"
COMMIT, BLOB = "0419ff881d7bb503f4fc0f0a7a5aac3d012c9b91", "53fa7f13460f60185aa402f69d40e60563d35be5"
BLOCK = re.compile(r"(?<=^```console\n)(.*?)(?=^```$)", re.M | re.S)
COMMAND = re.compile(r"^\$ .*\n(?:> .*\n)*", re.M)
INTERRUPT, COUNTED = "^C", re.compile(r"\b[1-9]\d*/\d+ runs")
END = "\x01"  # of a command's output, before its status
OWN = ("HF_", "TRANSFORMERS_", "PYTHON", "VIRTUAL_ENV", "OMP_")  # variables that a new user has not set
INTERRUPTED = 130


class Played(NamedTuple):
    """A command and what it did.

    Attributes:
        text: as typed, with ``$`` and ``>``.
        output: as a terminal shows it in the end.
        status: with which it ended.
    """

    text: str
    output: str
    status: int


class Shell:
    """A bash that goes on from one command to the next.

    Args:
        folder: where it starts.
        env: its environment.
    """

    def __init__(self, folder: Path, env: dict[str, str]):
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=env,
            start_new_session=True,
            preexec_fn=_listen,
        )
        self._type("trap : INT")  # a Ctrl-C is for the command

    def run(self, text: str, *, interrupt: bool = False) -> Played:
        """Types a command, and waits until it has ended.

        Args:
            text: see :class:`Played`.
            interrupt: stop it when its bar has counted a run.
        """
        self._type(re.sub(r"^[$>] ", "", text, flags=re.M) + f"printf '{END}%s\\n' $?")
        printed = b""
        while END.encode() not in printed or not printed.endswith(b"\n"):
            part = os.read(self._bash.stdout.fileno(), 1 << 16)
            if not part:
                raise RuntimeError(f"the shell has ended:\n{printed.decode()}")
            printed += part
            if interrupt and COUNTED.search(printed.decode(errors="ignore")):
                os.killpg(self._bash.pid, signal.SIGINT)
                printed += f"{INTERRUPT}\n".encode()
                interrupt = False
        output, _, status = printed.decode().rpartition(END)
        return Played(text, shown(output), int(status))

    def close(self) -> None:
        """Leaves it."""
        self._bash.stdin.close()
        self._bash.wait(10)

    def _type(self, line: str) -> None:
        self._bash.stdin.write(f"{line}\n".encode())
        self._bash.stdin.flush()


def _listen() -> None:
    """Undoes what a shell does to a command with ``&``: it and all that it starts would ignore a Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def play(folder: Path) -> Iterator[Played]:
    """The commands of the page, one after the other.

    Args:
        folder: empty.

    Raises:
        RuntimeError: one failed.
    """
    with serve({"hf_owner": "owner"}) as hub:
        set_up(folder)
        shell = Shell(folder / CHECKOUT, environment(folder, hub.endpoint))
        try:
            for text, interrupt in commands():
                played = shell.run(text, interrupt=interrupt)
                if played.status != (INTERRUPTED if interrupt else 0):
                    raise RuntimeError(f"status {played.status}:\n{played.text}{played.output}")
                yield played
        finally:
            shell.close()


def commands() -> Iterator[tuple[str, bool]]:
    """Those of the page, and whether a Ctrl-C follows."""
    for block in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        starts = [*(match.span() for match in COMMAND.finditer(block)), (len(block), 0)]
        for (start, end), (following, _) in itertools.pairwise(starts):
            yield block[start:end], INTERRUPT in block[end:following]


def set_up(folder: Path) -> None:
    """What is there when the hour begins: a checkout, and a script of transformers."""
    subprocess.run(["git", "clone", "--quiet", ROOT, folder / CHECKOUT], check=True)
    place, own = folder / CHECKOUT / "run_clm.py", os.environ.get("UPSTREAM_RUN_CLM")
    if own:
        shutil.copy(own, place)
    else:
        with urllib.request.urlopen(UPSTREAM.format(COMMIT), timeout=60) as answer:
            place.write_bytes(answer.read())
    content = place.read_bytes()
    if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != BLOB:
        raise RuntimeError(f"this is not the run_clm.py of {COMMIT}")


def environment(folder: Path, endpoint: str) -> dict[str, str]:
    """That of somebody who has set nothing, with caches of their own and a hub that is not the Hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OWN)}
    hub = {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_owner", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**kept, **hub, "HF_HOME": str(folder / "home"), "MPLCONFIGDIR": str(folder / "home/matplotlib")}


def shown(output: str) -> str:
    """What a terminal shows in the end: of a line that was written again and again, the last."""
    lines = (line.rstrip().rpartition("\r")[2].rstrip() for line in output.split("\n"))
    return re.sub(r"\n{2,}", "\n\n", "\n".join(lines)).strip("\n")


def written(page: str, played: list[Played]) -> str:
    """The page with these outputs."""
    rest = iter(played)

    def refreshed(block: re.Match) -> str:
        found = [next(rest) for _ in COMMAND.findall(block[0])]
        return "".join(f"{one.text}{one.output}\n" if one.output else one.text for one in found)

    return BLOCK.sub(refreshed, page)


def main() -> None:
    played = []
    with tempfile.TemporaryDirectory() as folder:
        for one in play(Path(folder)):
            print(one.text + one.output, flush=True)
            played.append(one)
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), played), encoding="utf-8")


if __name__ == "__main__":
    main()
