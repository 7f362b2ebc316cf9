"""A run of ``compare``, in its own process: what ``run`` does, with a recorder in every Trainer.

python -m adafisher_hf.cli.recorded FOLDER (SCRIPT | -m MODULE) [ARGS ...]
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wrapt

from .runner import run_module, run_script


def main(argv: Sequence[str]) -> None:
    """Runs the script or module; whatever it raises passes through.

    Args:
        argv: see above.
    """
    folder, target, *args = argv
    # When the script imports it, not before: what it sets in the environment first has to be there by then.
    wrapt.register_post_import_hook(functools.partial(_record, Path(folder)), "transformers.trainer")
    if target == "-m":
        run_module(args[0], args[1:])
    else:
        run_script(target, args)


def _record(folder: Path, trainer: Any) -> None:
    from ..compare.recorder import Recorder

    trainer.DEFAULT_CALLBACKS.append(Recorder(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
