"""The import graph of a package, read from its source: imports inside functions, for type checkers, and by a string
``"module:Class"`` too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "adafisher_hf"

IMPORTED_LATER = re.compile(r"(?P<module>\w+(\.\w+)*):[A-Za-z_]\w*")

Graph = dict[str, set[str]]  # module -> modules, by dotted name inside the package; the package itself is ""


def graph_of(package: Path) -> Graph:
    """Who imports whom, of the files below a folder."""
    files = {_dotted(path.relative_to(package)): path for path in package.rglob("*.py")}
    return {name: {t for t in _targets(name, path, files, package.name) if t != name} for name, path in files.items()}


def rings(graph: Graph) -> list[tuple[str, ...]]:
    """The groups of modules that import each other, round about."""
    far = {name: _reach(graph, name) for name in graph}
    return sorted({tuple(sorted(m for m in far[n] if n in far[m])) for n in graph if n in far[n]})


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _targets(name: str, path: Path, files: dict[str, Path], package: str) -> Iterator[str]:
    home = (name if path.name == "__init__.py" else name.rpartition(".")[0]).split(".")
    home = [part for part in home if part]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and (named := IMPORTED_LATER.fullmatch(str(node.value))):
            parts = named["module"].split(".")
            yield _known(parts[1:] if parts[0] == package else [*home, *parts], files)
        if isinstance(node, ast.Import):
            yield from (
                _known(alias.name.split(".")[1:], files) for alias in node.names if _is_ours(alias.name, package)
            )
        if isinstance(node, ast.ImportFrom):
            base = node.module.split(".") if node.module else []
            if node.level:
                base = home[: len(home) - node.level + 1] + base
            elif base[:1] == [package]:
                base = base[1:]
            else:
                continue
            yield from (_known([*base, alias.name], files) for alias in node.names)


def _is_ours(name: str, package: str) -> bool:
    return name.split(".")[0] == package


def _known(parts: list[str], files: dict[str, Path]) -> str:
    """The longest beginning that is a file; what is left is a name in it."""
    while parts and ".".join(parts) not in files:
        parts = parts[:-1]
    return ".".join(parts)


def _reach(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen
