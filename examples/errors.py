"""What the examples do with mistakes that the user can mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """A wrong argument or file. The message says what is wrong and what would be right."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Ends the program with the message of an :class:`InputError` alone: a traceback would bury it."""
    try:
        yield
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


def root_cause(error: BaseException) -> str:
    """The first line of the innermost error; libraries wrap what happened into "an error occurred"."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
