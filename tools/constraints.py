"""Print the versions of ``poetry.lock`` as a pip constraints file, so that pip installs what was tested.

    python tools/constraints.py poetry.lock > constraints.txt

Needs nothing but the standard library: it runs before anything is installed.
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

# What a CUDA build of torch brings along is pinned by that build, and by no more than one.
_PINNED_BY_TORCH = ("cuda-", "nvidia-", "triton")


def constraints(lock: dict[str, Any]) -> list[str]:
    """One line a package: ``name==version``, with its marker where the lock has several versions.

    A version that the lock gives to one extra alone is not a constraint for the others; it is left out.
    """
    packages = [p for p in lock["package"] if not p["name"].startswith(_PINNED_BY_TORCH)]
    versions = Counter(package["name"] for package in packages)
    lines: list[str] = []
    for package in packages:
        line = f"{package['name']}=={package['version']}"
        if versions[package["name"]] > 1:
            marker = package.get("markers", "")
            if not isinstance(marker, str) or "extra ==" in marker:
                continue
            line += f" ; {marker}" if marker else ""
        lines.append(line)
    return lines


def main() -> None:
    """Read the lock file named on the command line."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} poetry.lock")
    print("\n".join(constraints(tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))


if __name__ == "__main__":
    main()
