"""What a comparison ends with, as one text."""

from __future__ import annotations

from .notes import notes
from .results import Comparison
from .tables import cost_table, failures_table, quality_table, tries_table
from .verdict import verdict


def summary(comparison: Comparison) -> str:
    """Markdown: tables, notes, and the verdict last, where a terminal shows it.

    Args:
        comparison: of runs that have ended.
    """
    tables = [
        quality_table(comparison),
        cost_table(comparison),
        tries_table(comparison),
        failures_table(comparison),
    ]
    remarks = "\n".join(f"- {note}" for note in notes(comparison))
    return "\n\n".join([*filter(None, tables), remarks, verdict(comparison)])
