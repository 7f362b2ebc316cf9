"""What a comparison ends with, as one text."""

from __future__ import annotations

from .notes import notes
from .results import Comparison
from .tables import cost_table, failures_table, quality_table, tries_table
from .verdict import verdict


def summary(comparison: Comparison, at_once: int) -> str:
    """Markdown: tables, notes, and the verdict last, where a terminal shows it.

    Args:
        comparison: of runs that have ended.
        at_once: how many shared the machine.
    """
    tables = [
        quality_table(comparison),
        cost_table(comparison),
        tries_table(comparison),
        failures_table(comparison),
    ]
    remarks = "\n".join(f"- {note}" for note in notes(comparison, at_once))
    return "\n\n".join([*filter(None, tables), remarks, verdict(comparison)])
