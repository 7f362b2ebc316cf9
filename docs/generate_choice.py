"""Draws the flow chart of choosing.md as ``docs/assets/choosing.svg``, for light and dark pages.

python docs/generate_choice.py
"""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import NamedTuple


class Question(NamedTuple):
    """Two lines of text, and two of what a yes leads to; a no leads to the next question."""

    asked: tuple[str, str]
    answer: tuple[str, str]


QUESTIONS = (
    Question(("Comparing with", "the paper?"), ("mode=paper", "or mode=reference")),
    Question(("Fine-tuning an image", "model, LoRA or all?"), ("structure=orthogonal,", "or kronecker if it fits")),
    Question(("Training adapters", "(LoRA)?"), ("AdamW, or the defaults:", "level, half of the state")),
    Question(("Fine-tuning", "all weights?"), ("AdamW; the defaults", "for half of its state")),
    Question(("From scratch, and", "memory is the limit?"), ("structure=diagonal with", "state_dtype=bfloat16, int8")),
    Question(("Wide, with under 64k", "tokens a step?"), ("orthogonal_exclude, or", "structure=diagonal")),
)
LAST = ("From scratch:", "structure=orthogonal")

BOX, HEIGHT, GAP, MARGIN = 228, 62, 40, 12
RIGHT = MARGIN + BOX + 64  # where answers begin
STYLE = """
  text { font: 16px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; text-anchor: middle; fill: #24292f; }
  .small { font-size: 15px; } .asked { fill: #eef1f4; stroke: #57606a; } .answer { fill: #fdf1e3; stroke: #a04100; }
  .best { fill: #e3f2f1; stroke: #00695c; stroke-width: 2.5; } .arrow { stroke: #57606a; fill: none; }
  marker path { fill: #57606a; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .asked { fill: #1f252c; stroke: #9ea7b3; } .answer { fill: #33261a; stroke: #ffa657; }
    .best { fill: #16302e; stroke: #4fd1c0; } .arrow { stroke: #9ea7b3; } marker path { fill: #9ea7b3; }
  }
"""
MARKER = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0 L8 4 L0 8 z"/></marker></defs>'
)


def main() -> None:
    (Path(__file__).parent / "assets" / "choosing.svg").write_text(draw(), encoding="utf-8")


def draw() -> str:
    parts = [f"<style>{STYLE}</style>", MARKER]
    for i, question in enumerate(QUESTIONS):
        y = MARGIN + i * (HEIGHT + GAP)
        parts += [_box("asked", MARGIN, y, question.asked), _box("answer", RIGHT, y, question.answer)]
        parts += [_arrow(MARGIN + BOX, y + HEIGHT / 2, RIGHT, y + HEIGHT / 2, "yes")]
        parts += [_arrow(MARGIN + BOX / 2, y + HEIGHT, MARGIN + BOX / 2, y + HEIGHT + GAP, "no")]
    bottom = MARGIN + len(QUESTIONS) * (HEIGHT + GAP)
    parts.append(_box("best", MARGIN, bottom, LAST))
    width, height = RIGHT + BOX + MARGIN, bottom + HEIGHT + MARGIN
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    return f"{head}<title>Which optimizer and structure</title>{''.join(parts)}</svg>\n"


def _box(kind: str, x: float, y: float, lines: tuple[str, str]) -> str:
    texts = [
        f'<text class="small" x="{x + BOX / 2}" y="{y + below}">{escape(line)}</text>'
        for line, below in zip(lines, (26, 48), strict=True)
    ]
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="8"/>{"".join(texts)}'


def _arrow(x: float, y: float, to_x: float, to_y: float, word: str) -> str:
    word_x, word_y = ((x + to_x) / 2 - 2, y - 8) if y == to_y else (x + 20, (y + to_y) / 2 + 5)
    path = f'<path class="arrow" d="M{x} {y} L{to_x} {to_y}" marker-end="url(#tip)"/>'
    return f'{path}<text class="small" x="{word_x}" y="{word_y}">{word}</text>'


if __name__ == "__main__":
    main()
