"""The training script that is compared on: its arguments, and what each run adds to them."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import itertools
import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CompareError

if TYPE_CHECKING:
    from .plan import Job

OUTPUT = "output"  # of a run, in its folder
# Of TrainingArguments: what every run has of its own,
OWN = {
    "optim": "--arms",
    "optim_args": "--arms",
    "learning_rate": "--arms",
    "seed": "--seeds",
    "output_dir": "--out",
}
# what cannot be while many models are trained and none is kept,
REFUSED = {
    "push_to_hub": "would upload every model",
    "resume_from_checkpoint": "would take the state of another optimizer",
    "load_best_model_at_end": "needs checkpoints, of which none are kept",
}
# and what a comparison needs unless the script is told otherwise.
ADDED = {
    "eval_strategy": "steps",
    "eval_steps": "0.1",
    "logging_steps": "0.05",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": "true",
}
OFF = ("0", "false", "none")  # as the value of a flag
FILES = (".json", ".yaml", ".yml")  # HfArgumentParser reads one of these in place of all flags


@dataclass(frozen=True)
class Program:
    """A script or module, and its arguments.

    Attributes:
        target: ``("train.py",)`` or ``("-m", "package.train")``.
        args: its own, without what a run adds.
    """

    target: tuple[str, ...]
    args: tuple[str, ...]

    def check(self) -> None:
        """Finds what would be wrong with every run.

        Raises:
            CompareError: there is no such script, or its arguments are not ours to add to.
        """
        _check_target(self.target)
        if len(self.args) == 1 and self.args[0].endswith(FILES):
            raise CompareError(
                f"{self.args[0]}: the runs differ in their arguments, so give them as flags, not as a file"
            )
        for name, value in given(self.args).items():
            if name in OWN:
                raise CompareError(f"--{name} is what the runs differ in: leave it out, {OWN[name]} says it")
            if name in REFUSED and value.lower() not in OFF:
                raise CompareError(f"--{name} {REFUSED[name]}: leave it out")

    def command(self, job: Job, folder: Path) -> list[str]:
        """Target and arguments of one run.

        Args:
            job: the run.
            folder: of the run.
        """
        own = {"optim": job.arm.optim, "learning_rate": repr(job.lr), "seed": str(job.seed)}
        own |= {"optim_args": job.arm.optim_args} if job.arm.optim_args else {}
        own |= {"output_dir": str(folder / OUTPUT)}
        known = given(self.args)
        added = {name: value for name, value in ADDED.items() if name not in known}
        flags = [word for name, value in {**added, **own}.items() for word in (f"--{name}", value)]
        return [*self.target, *self.args, *flags]

    def identity(self) -> dict[str, Any]:
        """What tells two programs apart: a script that was edited is another one."""
        file = Path(self.target[0])
        content = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
        return {"target": self.target, "content": content, "args": self.args, "added": ADDED}

    def __str__(self) -> str:
        return shlex.join([*self.target, *self.args])


def given(args: Sequence[str]) -> dict[str, str]:
    """The flags by name, ``-`` as ``_``, with the first word of their value, which may be empty."""
    return dict(_flags(args))


def _flags(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    for word, behind in itertools.pairwise([*args, "--"]):
        if word.startswith("--") and word != "--":
            name, equals, value = word[2:].partition("=")
            yield name.replace("-", "_"), value if equals or behind.startswith("--") else behind


def _check_target(target: tuple[str, ...]) -> None:
    if target[0] != "-m":
        if not os.path.exists(target[0]):
            raise CompareError(f"no script {target[0]!r} in {os.getcwd()!r}")
        return
    # Its package alone: looking for what is in there would import it.
    package = target[1].partition(".")[0]
    is_here = package and importlib.machinery.PathFinder.find_spec(package, [os.getcwd()])
    if not (is_here or (package and importlib.util.find_spec(package))):
        raise CompareError(f"no module named {target[1]!r}")
