"""Where runs are made: each in a process of its own, and kept in a folder so that it is made once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..insight import log as curvature_log
from ..report.folders import CONFIGS, COVERAGE_NAME
from .plan import Job
from .program import OUTPUT, Program
from .run import FILE_NAME, LOG_NAME, Run, ended, read_run

POLL, PATIENCE = 0.1, 10.0  # seconds
KIB = 1 if sys.platform == "darwin" else 1024  # bytes of the unit in which the system counts memory
FOR_REPORT = (curvature_log.FILE_NAME, COVERAGE_NAME, *(config.file_name for config in CONFIGS))


@dataclass
class _Process:
    folder: Path
    start: float
    popen: subprocess.Popen
    peak_bytes: int = 0


class Workshop:
    """Makes runs.

    Args:
        out: where their folders are.
        program: what is run.
        launcher: the command that makes a run; it gets the run's folder, then the program and its arguments.
        versions: what a result depends on beside the program.
        at_once: how many processes may run.
        keep_output: also what the script has saved, such as its models.
    """

    def __init__(
        self,
        out: Path,
        program: Program,
        launcher: Sequence[str],
        versions: Mapping[str, str],
        *,
        at_once: int = 1,
        keep_output: bool = False,
    ):
        self.program = program
        self._out, self._launcher = out, launcher
        self._depends_on = {**program.identity(), "versions": dict(versions)}
        self._at_once, self._keep_output = at_once, keep_output
        self._running: dict[Job, _Process] = {}

    @property
    def running(self) -> list[Job]:
        """What is being made now."""
        return list(self._running)

    @property
    def has_room(self) -> bool:
        """Whether another one may begin."""
        return len(self._running) < self._at_once

    def find(self, job: Job) -> Run | None:
        """The run of a job, if an earlier comparison has made it and it ended well."""
        return read_run(self.folder_of(job))

    def start(self, job: Job) -> None:
        """Begins a run, anew if there is a part of one."""
        folder = self.folder_of(job)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        place = folder.absolute()  # wherever the script goes
        command = [*self._launcher, str(place), *self.program.command(job, place)]
        with (folder / LOG_NAME).open("wb") as log:
            popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self._environment()
            )
        self._running[job] = _Process(folder, time.monotonic(), popen)

    def poll(self) -> tuple[Job, Run] | None:
        """The next run that ends, within a moment; None: none has."""
        for job, process in self._running.items():
            process.peak_bytes = max(process.peak_bytes, _high_water(process.popen.pid))
            pid, status, usage = os.wait4(process.popen.pid, os.WNOHANG)
            if pid:
                process.popen.returncode = os.waitstatus_to_exitcode(status)
                del self._running[job]
                return job, self._put_away(job, process, process.peak_bytes or usage.ru_maxrss * KIB)
        time.sleep(POLL)
        return None

    def stop(self) -> None:
        """Ends what runs."""
        for process in self._running.values():
            process.popen.terminate()
        for process in self._running.values():
            try:
                process.popen.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
        self._running.clear()

    def folder_of(self, job: Job) -> Path:
        """By what the run depends on: its command, the script's content, and versions."""
        key = hashlib.sha256(json.dumps(self._key(job), sort_keys=True).encode()).hexdigest()
        return self._out / f"{re.sub(r'[^A-Za-z0-9.=-]+', '-', str(job))}-{key[:8]}"

    def _key(self, job: Job) -> dict[str, Any]:
        setting = {"optim": job.arm.optim, "optim_args": job.arm.optim_args, "lr": job.lr, "seed": job.seed}
        return {**setting, **self._depends_on}

    def _put_away(self, job: Job, process: _Process, peak_bytes: int) -> Run:
        folder, seconds = process.folder, time.monotonic() - process.start
        run = ended(folder, process.popen.returncode, seconds, peak_bytes, self._at_once)
        output = folder / OUTPUT
        for name in FOR_REPORT:
            if (output / name).is_file():
                shutil.copy(output / name, folder)
        if not self._keep_output:
            shutil.rmtree(output, ignore_errors=True)
        if run.error is None:
            command = shlex.join(self.program.command(job, folder))
            measured = {"seconds": seconds, "peak_bytes": peak_bytes, "at_once": self._at_once}
            kept = {**self._key(job), "command": command, **measured}
            (folder / FILE_NAME).write_text(json.dumps(kept, indent=1), encoding="utf-8")
        return run

    def _environment(self) -> dict[str, str]:
        """Several at once share the processor's cores, unless somebody has said who gets how many."""
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self._at_once))} if self._at_once > 1 else {}
        return {**threads, **os.environ}


def _high_water(pid: int) -> int:
    """The largest resident size so far, in bytes; 0 where the system does not say.

    What ``wait4`` tells is at least the size of the process that has started this one.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
