"""Short names of parameters, for the margin of a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

LONGEST = 22


def short_names(names: Sequence[str]) -> list[str]:
    """For each name the first of its shorter forms that no other name shares.

    ``model.layers.0.mlp.up_proj.weight`` becomes ``0 up_proj``, or ``enc 0 up_proj`` where there is a decoder too.
    """
    several = len({name.split(".")[0] for name in names if block_of(name)}) > 1
    forms = {name: list(_forms(name, several)) for name in names}
    counts = Counter(form for name in names for form in set(forms[name]))
    short = [next((form for form in forms[name] if counts[form] == 1), name) for name in names]
    fitted = Counter(map(_fit, short))
    return [_fit(form) if fitted[_fit(form)] == 1 else form for form in short]


def block_of(name: str) -> str:
    """What comes before the first number and that number: the block of a transformer that a parameter belongs to."""
    parts = name.split(".")
    end = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return "" if end is None else ".".join(parts[: end + 1])


def _forms(name: str, with_stack: bool) -> Iterator[str]:
    parts = name.removesuffix(".weight").split(".")
    for length in range(1, len(parts) + 1):
        rest, last = parts[:-length], ".".join(parts[-length:])
        numbers = ".".join(part for part in rest if part.isdecimal())
        stack = rest[0][:3] if numbers and with_stack and not rest[0].isdecimal() else ""
        yield " ".join(filter(None, (stack, numbers, last)))


def _fit(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2 - 1]}…{name[-LONGEST // 2 :]}"
