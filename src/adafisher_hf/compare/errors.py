"""What the user has to put right."""

from __future__ import annotations


class CompareError(ValueError):
    """Something is wrong with what was asked for, or with what the script did; the message names the fix."""
