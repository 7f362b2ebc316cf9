"""Knobs: fields of a dataclass that know their range and their help."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

LONGEST = 80  # characters of a value that a message shows
MOST_BITS = 1024  # of an integer; Python itself cannot write those of 14,300


@dataclass(frozen=True)
class Interval:
    """A range of numbers; ``low`` belongs to it unless ``open_low``, a finite ``high`` never does."""

    low: float
    high: float = math.inf
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.open_low else self.low <= value) and value < self.high

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"in {'(' if self.open_low else '['}{self.low}, {self.high})"
        return f"{'>' if self.open_low else '>='} {self.low}"


@dataclass(frozen=True)
class Text:
    """Any text that ``optim_args`` can hold: without commas and equals signs; ``words`` say what it is."""

    words: str

    def __contains__(self, value: Any) -> bool:
        return isinstance(value, str) and value.strip() != "" and not set(value) & set(",=")

    def __str__(self) -> str:
        return f"{self.words}, without commas and equals signs"


Names = Callable[[], tuple[str, ...]]
Allowed = Interval | Text | tuple[str, ...] | tuple[bool, ...]


def knob(default: Any, allowed: Allowed | Names, help: str, *, fixed: bool = False) -> Any:
    """A field of a dataclass with the values that it may take and what it does.

    Args:
        default: of the field.
        allowed: a range of numbers, the choices, a text, or a function that returns the choices: a registry may grow.
        help: one sentence.
        fixed: whether a saved state is made for it, so that a run cannot be resumed with another value.
    """
    return field(default=default, metadata={"allowed": allowed, "help": help, "fixed": fixed})


def knobs_of(cls: type) -> dict[str, dataclasses.Field]:
    """The knobs of a dataclass by name."""
    return {found.name: found for found in dataclasses.fields(cls)}


def allowed_of(cls: type, name: str) -> Interval | Text | tuple[Any, ...]:
    """What a knob may be now."""
    allowed = knobs_of(cls)[name].metadata["allowed"]
    return allowed() if callable(allowed) else allowed


@functools.cache
def _types_of(cls: type) -> dict[str, tuple[type, ...]]:
    hints = typing.get_type_hints(cls)
    return {name: typing.get_args(hint) or (hint,) for name, hint in hints.items()}


def kinds(cls: type, name: str) -> tuple[type, ...]:
    """The types of a knob: ``(float, NoneType)``."""
    return _types_of(cls)[name]


def allowed_text(cls: type, name: str) -> str:
    """What a knob may be, in words: ``a number in [0, 1), or none``."""
    allowed = allowed_of(cls, name)
    if isinstance(allowed, tuple):
        return "one of " + ", ".join(map(repr, allowed)) + (", or none" if types.NoneType in kinds(cls, name) else "")
    noun = "an integer " if int in kinds(cls, name) else "a number "
    noun = "" if isinstance(allowed, Text) else noun
    return f"{noun}{allowed}" + (", or none" if types.NoneType in kinds(cls, name) else "")


def checked(cls: type, name: str, value: Any) -> Any:
    """A value as the type of its knob.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a value out of range, or an unknown choice.
    """
    expected = kinds(cls, name)
    complaint = f"{name} must be {allowed_text(cls, name)}, got {shown(value)}"
    if value is None and types.NoneType in expected:
        return None
    if not _is_of(expected, value):
        raise TypeError(complaint)
    if str not in expected:
        try:
            value = expected[0](value)
        except OverflowError:  # an integer that is too large for a float
            raise ValueError(complaint) from None
    if value not in allowed_of(cls, name) or (isinstance(value, int) and value.bit_length() > MOST_BITS):
        raise ValueError(complaint)
    return value


def shown(value: Any, *, quoted: bool = True) -> str:
    """A value as messages show it: as Python writes it, or as it prints, and not longer than a line."""
    try:
        text = repr(value) if quoted else str(value)
    except (ValueError, RecursionError):  # Python writes no integer of more than 4300 digits
        return f"{type(value).__name__} too large to be shown"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _is_of(expected: tuple[type, ...], value: Any) -> bool:
    # To Python True is a 1 as well.
    if bool in expected or isinstance(value, bool):
        return bool in expected and isinstance(value, bool)
    if str in expected:
        return isinstance(value, str)
    return isinstance(value, numbers.Integral if int in expected else numbers.Real)


def parsed(cls: type, name: str, text: str) -> Any:
    """The value that a text stands for: as Python writes it, in small letters or not, and ``none``.

    Raises:
        ValueError: it does not fit the knob.
    """
    expected = kinds(cls, name)
    words: dict[str, bool | None] = {"none": None} if types.NoneType in expected else {}
    if bool in expected:
        words.update({"true": True, "false": False})
    if text.lower() in words:
        return words[text.lower()]
    if bool in expected:
        raise ValueError(text)
    return checked(cls, name, expected[0](text))


def help_of(cls: type) -> str:
    """All knobs, one paragraph each: what ``--help`` prints and the documentation shows."""
    return "\n".join(
        f"  {name} = {found.default}  ({allowed_text(cls, name)})\n      {found.metadata['help']}"
        for name, found in knobs_of(cls).items()
    )


def suggestion(name: str, cls: type, also: Iterable[str] = ()) -> str:
    """The end of a message about a name that is no knob: whose it is, or which it may be meant for.

    Args:
        name: the unknown one.
        cls: the dataclass that does not have it; others of its base may.
        also: names that are valid beside its knobs.
    """
    others = [other for other in _siblings(cls) if dataclasses.is_dataclass(other) and name in knobs_of(other)]
    homes = [getattr(other, "title", other.__name__).removesuffix(" config") for other in others]
    if homes:
        return f", which is an option of {' and '.join(homes)}"
    return did_you_mean(name, [*knobs_of(cls), *also])


def _siblings(cls: type) -> Iterator[type]:
    for base in cls.__mro__[1:-1]:
        yield from type.__subclasses__(base)


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown name; empty if no valid one is close."""
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
