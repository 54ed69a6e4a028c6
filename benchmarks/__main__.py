"""List the benchmarks: `python -m benchmarks` prints what can be run, and what each measures."""

from __future__ import annotations

import ast
from pathlib import Path


def available(folder: Path) -> list[tuple[str, str]]:
    """The folder's runnable modules: name and first line of the docstring, without importing any.

    A module is runnable when it has an ``if __name__ == "__main__"`` of its own; names with a leading
    underscore are not listed.
    """
    found: list[tuple[str, str]] = []
    for path in sorted(folder.glob("*.py")):
        if path.stem.startswith("_"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        if any(isinstance(node, ast.If) and "__name__" in ast.dump(node.test) for node in tree.body):
            summary = (ast.get_docstring(tree) or "").partition("\n")[0]
            found.append((path.stem, summary))
    return found


def main() -> None:
    """Print one line a benchmark: the command and what it measures."""
    benchmarks = available(Path(__file__).parent)
    if not benchmarks:
        print("no benchmark in benchmarks/ yet")
    for name, summary in benchmarks:
        print(f"python -m benchmarks.{name:<24} {summary}")


if __name__ == "__main__":
    main()
