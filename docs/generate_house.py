"""Draws the rooms of the package and their imports, read from the source, as ``docs/assets/house.svg``.

    python docs/generate_house.py
    python docs/generate_house.py --package OTHER_CHECKOUT/src/adafisher_hf --out docs/assets/house-before.svg

A room is a folder or a file at the top; it stands above all that it imports. An arrow that goes both ways is red.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import networkx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.oracles.imports import PACKAGE, graph_of  # noqa: E402

WIDTH, HEIGHT, GAP, MARGIN = 132, 44, 26, 20
RISE = 46  # between two floors
STYLE = """
  .room { fill: #e3f2f1; stroke: #00796b; } .name { fill: #102a28; font: 600 13px sans-serif; }
  .arrow { stroke: #6b8a87; stroke-width: 1; fill: none; }
  .both { stroke: #c62828; stroke-width: 2; } marker path { fill: #6b8a87; }
  @media (prefers-color-scheme: dark) {
    .room { fill: #16302e; stroke: #4db6ac; } .name { fill: #e3f2f1; }
    .arrow { stroke: #7fa19d; } .both { stroke: #ef9a9a; } marker path { fill: #7fa19d; }
  }
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default=PACKAGE, help="folder of the package")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/assets/house.svg", help="the picture")
    args = parser.parse_args()
    picture, words = draw(args.package)
    args.out.write_text(picture)
    print(words)


def draw(package: Path) -> tuple[str, str]:
    """The SVG, and one line that says what is on it."""
    rooms = rooms_of(package)
    both = {(a, b) for a, b in rooms.edges if rooms.has_edge(b, a)}
    places = _places(_floors(rooms))
    width = max(x for x, _ in places.values()) + WIDTH + MARGIN
    height = max(y for _, y in places.values()) + HEIGHT + MARGIN
    parts = [f"<style>{STYLE}</style>", _MARKER]
    parts += [_arrow(places[a], places[b], (a, b) in both) for a, b in sorted(rooms.edges)]
    parts += [_room(name, *places[name]) for name in sorted(rooms)]
    floors = len({y for _, y in places.values()})
    title = f"{len(rooms)} rooms on {floors} floors, {len(rooms.edges)} arrows, {len(both) // 2} of them both ways"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    words = f"{title}; {sum(lines for _, lines in rooms.nodes(data='lines'))} lines"
    return f"{head}<title>{title}</title>{''.join(parts)}</svg>\n", words


def rooms_of(package: Path) -> networkx.DiGraph:
    """Folders and files at the top of a package, and who of them imports whom."""
    rooms = networkx.DiGraph()
    lines: dict[str, int] = defaultdict(int)
    for path in package.rglob("*.py"):
        lines[path.relative_to(package).parts[0].removesuffix(".py")] += len(path.read_text().splitlines())
    for module, targets in graph_of(package).items():
        for target in targets:
            a, b = (name.split(".")[0] or "__init__" for name in (module, target))
            if a != b:
                rooms.add_edge(a, b)
    for name, count in lines.items():
        rooms.add_node(name, lines=count)
    return rooms


def _floors(rooms: networkx.DiGraph) -> list[list[str]]:
    """From the top down; rooms that import each other stand on one floor."""
    groups = networkx.condensation(rooms)
    floor: dict[int, int] = {}
    for group in reversed(list(networkx.topological_sort(groups))):
        floor[group] = max((floor[below] + 1 for below in groups.successors(group)), default=0)
    found: dict[int, list[str]] = defaultdict(list)
    for group, level in floor.items():
        found[level] += sorted(groups.nodes[group]["members"])
    return [sorted(found[level]) for level in sorted(found, reverse=True)]


def _places(floors: list[list[str]]) -> dict[str, tuple[float, float]]:
    widest = max(map(len, floors))
    places = {}
    for level, names in enumerate(floors):
        left = MARGIN + (widest - len(names)) * (WIDTH + GAP) / 2 + (level % 2) * GAP * 1.5
        for i, name in enumerate(names):
            places[name] = (left + i * (WIDTH + GAP), MARGIN + level * (HEIGHT + RISE))
    return places


_MARKER = (
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
    '<path d="M0 0 L8 4 L0 8 z"/></marker></defs>'
)


def _arrow(start: tuple[float, float], end: tuple[float, float], both: bool) -> str:
    (x, y), (to_x, to_y) = start, end
    x, to_x = x + WIDTH / 2, to_x + WIDTH / 2
    if y == to_y:  # on one floor: over the roofs
        path = f"M{x} {y} C{x} {y - RISE} {to_x} {y - RISE} {to_x} {to_y}"
    else:
        path = f"M{x} {y + HEIGHT} C{x} {y + HEIGHT + RISE} {to_x} {to_y - RISE} {to_x} {to_y}"
    return f'<path class="arrow{" both" if both else ""}" d="{path}" marker-end="url(#tip)"/>'


def _room(name: str, x: float, y: float) -> str:
    middle = x + WIDTH / 2
    return (
        f'<rect class="room" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text class="name" x="{middle}" y="{y + 27}" text-anchor="middle">{name}</text>'
    )


if __name__ == "__main__":
    main()
