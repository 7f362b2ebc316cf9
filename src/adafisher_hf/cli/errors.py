"""What the user has to put right."""

from __future__ import annotations


class CommandError(Exception):
    """Something is wrong with what was asked for; the message is all there is to say.

    Attributes:
        status: the exit status; where ``python`` has one of its own for this, that one.
    """

    def __init__(self, message: str, status: int = 2):
        super().__init__(message)
        self.status = status
