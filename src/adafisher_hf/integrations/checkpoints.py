"""Where a run goes on after it was killed: a checkpoint whose save was cut short is none.

The Trainer writes straight into ``checkpoint-N``, and on resuming takes the highest N it finds.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..config.content import parse_json, read_text

logger = logging.getLogger(__name__)

STATE_NAME = "trainer_state.json"


def is_complete(checkpoint: str | Path) -> bool:
    """Whether a folder is a checkpoint of the Trainer that was saved to its end."""
    # The Trainer writes its state last.
    try:
        parse_json(read_text(Path(checkpoint) / STATE_NAME))
    except (OSError, ValueError):
        return False
    return True


def last_complete(folder: str | Path) -> Path | None:
    """The newest complete checkpoint in an output folder."""
    return next(filter(is_complete, _newest_first(folder)), None)


def folder_of_step(folder: str | Path, step: int) -> Path:
    """Where the Trainer saves at a step."""
    return Path(folder) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def resumable(wish: str | os.PathLike[str] | bool | None, folder: str | Path) -> str | os.PathLike[str] | bool | None:
    """What ``Trainer.train`` should resume from when it is asked to resume from ``wish``.

    Args:
        wish: a checkpoint, or True for the last one in ``folder``.
        folder: the output folder.

    Raises:
        ValueError: the checkpoint that is asked for was cut short, or every one in the folder was.
    """
    if wish is True:
        return _last(Path(folder))
    if isinstance(wish, str | os.PathLike):
        path = Path(wish)
        if path.is_dir() and path.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-") and not is_complete(path):
            raise ValueError(_cut_short(path, last_complete(path.parent)))
    return wish


def begin_save(checkpoint: str | Path) -> None:
    """Makes an older checkpoint incomplete before its files are overwritten, so that a save that is cut short shows."""
    (Path(checkpoint) / STATE_NAME).unlink(missing_ok=True)


def _last(folder: Path) -> str | bool:
    checkpoints = _newest_first(folder)
    if not checkpoints:
        return True  # the Trainer says what is missing
    found = last_complete(folder)
    if found is None:
        raise ValueError(_cut_short(checkpoints[0], None))
    if found != checkpoints[0]:
        logger.warning("%s was cut short while it was saved: going on from %s", checkpoints[0], found)
    return str(found)


def _newest_first(folder: str | Path) -> list[Path]:
    found = (path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir() and _step(path) >= 0)
    return sorted(found, key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _cut_short(checkpoint: Path, previous: Path | None) -> str:
    instead = "there is no complete checkpoint beside it: start anew, without resume_from_checkpoint"
    if previous is not None:
        instead = f"resume from {previous}"
    return f"{checkpoint} was cut short while it was saved (no readable trainer_state.json); {instead}"
