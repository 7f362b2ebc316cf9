"""``trainer_state.json`` in the output folder while a run goes on, with the time of every entry of its log."""

from __future__ import annotations

import os
import time
from pathlib import Path

from transformers.trainer_callback import TrainerState

FILE_NAME = "trainer_state.json"
SECONDS = "seconds"
TIMED = {"loss", "train_runtime"}
SHARE = 0.01  # of the time of a run that writing may take: a long log is written less often


class LiveState:
    """Times the training entries of the Trainer's log and writes its state, as ``Trainer.save_state`` does at the end.

    The time is that of training, evaluations included: of a run that resumes it goes on from the checkpoint's. If the
    checkpoint's log has no times, neither do the new entries.
    """

    def __init__(self, state: TrainerState) -> None:
        log = state.log_history
        before = next((entry[SECONDS] for entry in reversed(log) if SECONDS in entry), None) if log else 0.0
        self._begin = None if before is None else time.monotonic() - before
        self._next = 0.0

    def on_log(self, state: TrainerState) -> None:
        """Puts the time into the last entry of the log; what trackers and the console get has been made before.

        Not where it is of an evaluation: transformers' model card would take it for a metric. ``eval_runtime`` tells.
        """
        entry = state.log_history[-1]
        if self._begin is not None and not entry.keys().isdisjoint(TIMED):
            entry[SECONDS] = round(time.monotonic() - self._begin, 3)

    def write(self, state: TrainerState, folder: Path, always: bool = False) -> None:
        """Writes the state, but not so often that it costs more than a hundredth of the time.

        Args:
            state: of the Trainer.
            folder: where to.
            always: in any case.
        """
        begin = time.monotonic()
        if begin < self._next and not always:
            return
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / (FILE_NAME + ".tmp")
        state.save_to_json(str(beside))
        os.replace(beside, folder / FILE_NAME)  # a report may be reading it
        end = time.monotonic()
        self._next = end + (end - begin) / SHARE
