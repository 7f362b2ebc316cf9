"""What the user has to put right."""

from __future__ import annotations

LONGEST = 300  # characters of somebody else's message


class CommandError(Exception):
    """Something is wrong with what was asked for; the message is all there is to say.

    Attributes:
        status: the exit status; where ``python`` has one of its own for this, that one. (argparse has 2 for usage.)
    """

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


def one_line(error: BaseException) -> str:
    """Somebody else's error by its kind and the beginning of its message."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
