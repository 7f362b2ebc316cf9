"""Where a run goes on after it was interrupted."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainingArguments

from adafisher_hf.integrations.checkpoints import is_complete, last_complete
from errors import InputError


def starting_point(args: TrainingArguments) -> str | None:
    """What --resume_from_checkpoint names, else the last complete checkpoint of the output folder, else None.

    ``--resume_from_checkpoint true`` insists on one in the output folder, ``false`` starts anew.

    Raises:
        InputError: there is no complete checkpoint where one was asked for.
    """
    asked = args.resume_from_checkpoint
    wish = str(asked).lower()
    if wish == "false":
        return None
    if asked is not None and wish != "true":
        if not is_complete(Path(asked)):
            raise InputError(f"--resume_from_checkpoint {asked}: no complete checkpoint there")
        return asked
    found = last_complete(output_folder(args))
    if found is None and wish == "true":
        raise InputError(f"--resume_from_checkpoint: no complete checkpoint in {args.output_dir}")
    return None if found is None else str(found)


def output_folder(args: TrainingArguments) -> Path:
    # None is filled in by TrainingArguments itself; only its annotation does not know.
    return Path(args.output_dir or "")
