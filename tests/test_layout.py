"""The house: who may import whom, and no pickle anywhere. Read from the sources, so nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("replug_client", "server", "demo", "benchmarks", "tests")
COMMON = (
    "replug_client",
    "replug_client.errors",
    "replug_client.artefacts",
    "replug_client.hub",
    "replug_client.progress",
    "replug_client.statistics",
    "replug_client.mixtures",
    "replug_client.pages",
)
_STAGES = ("replug_client.retriever", "replug_client.supervisor", "replug_client.corpus")

# What a package may import of ours, besides itself. The longest matching prefix counts.
ALLOWED: dict[str, tuple[str, ...]] = {
    "replug_client": COMMON,
    "replug_client.__main__": ("replug_client.cli.app",),
    "replug_client.corpus": COMMON,
    "replug_client.retriever": (*COMMON, "replug_client.corpus"),
    "replug_client.supervisor": (*COMMON, "replug_client.corpus"),
    "replug_client.training": (*COMMON, *_STAGES),
    "replug_client.compat": (*COMMON, *_STAGES, "replug_client.training"),
    "replug_client.inference": (*COMMON, *_STAGES),
    "replug_client.evaluation": (*COMMON, *_STAGES),
    # Questions are answered by what answers them anywhere else.
    "replug_client.evaluation.qa": (*COMMON, *_STAGES, "replug_client.evaluation", "replug_client.inference"),
    "replug_client.cli": ("replug_client", "server", "demo"),
    "server": (),
    # `python -m server check` scores as training does; the launcher itself needs nothing but Python.
    "server.scoring": ("replug_client", "server"),
    "demo": ("replug_client",),
    "benchmarks": ("replug_client", "server", "demo"),
    "benchmarks.faults": ("replug_client", "benchmarks", "tests.faults"),  # one proxy for both
    # The top-level programs: parse, call, nothing else.
    "": ("replug_client.cli.app",),
}
PACKAGES = ("replug_client", "server", "demo", "benchmarks")
_PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}


def sources() -> list[Path]:
    """Every Python file of the project but the tests and the tools."""
    inside = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return sorted([*inside, *ROOT.glob("*.py")])


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    """Full names of the modules that a source imports, relative ones and those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                own = module.split(".") if is_package else module.split(".")[:-1]
                kept = own[: len(own) - (node.level - 1)]
                base = ".".join([*kept, base] if base else kept)
            # `from package import module` may name a module: it is the longer name that is checked.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def home_of(module: str) -> str:
    homes = [home for home in ALLOWED if home and within(module, home)]
    return max(homes, key=len, default="")


def may_import(module: str, name: str) -> bool:
    home = home_of(module)
    if home and home != "replug_client" and within(name, home):
        return True
    for allowed in ALLOWED[home]:
        if allowed == "replug_client" and home != "replug_client.cli" and home.startswith("replug_client"):
            # The package itself (its version), not all that lies in it.
            if name in ("replug_client", "replug_client.__version__"):
                return True
        elif within(name, allowed):
            return True
    return False


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    names = imports_of(ast.parse(source), module, is_package)
    return [n for n in names if n.split(".")[0] in OURS and not may_import(module, n)]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_house(path: Path) -> None:
    found = violations(path.read_text("utf-8"), module_of(path), path.name == "__init__.py")
    assert not found, f"{module_of(path)} may not import {found}"


def test_every_stage_is_seen() -> None:
    seen = {home_of(module_of(path)) for path in sources()}
    assert {"", "replug_client.corpus", "replug_client.retriever", "replug_client.supervisor"} <= seen


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("replug_client.retriever.index", "from replug_client.supervisor.protocol import Prompt"),
        ("replug_client.retriever.index", "from replug_client import supervisor"),
        ("replug_client.supervisor.client", "from ..retriever import index"),
        ("replug_client.supervisor.client", "def f():\n    import replug_client.retriever.index"),
        ("replug_client.corpus.store", "import replug_client.training.loss"),
        ("replug_client.training.loss", "from replug_client.evaluation import likelihood"),
        ("replug_client.evaluation.report", "from replug_client.cli.app import run"),
        ("replug_client.errors", "from replug_client.corpus.records import Passage"),
        ("server.check", "from replug_client.supervisor.client import RemoteSupervisor"),
        ("server.start", "from replug_client.errors import ReplugError"),
        ("replug_client.corpus.store", "from tests.corpus import writers"),
        ("run_replug_lsr", "from replug_client.training.run import train"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("replug_client.retriever.index", "from replug_client.corpus.store import PassageStore"),
        ("replug_client.retriever.index", "from .shards import Shard"),
        ("replug_client.supervisor.client", "from replug_client.errors import SupervisorError"),
        ("replug_client.training.run", "from replug_client import __version__"),
        ("replug_client.training.run", "from replug_client.retriever.index import PassageIndex"),
        ("replug_client.cli.demo", "from demo.stdlib_corpus import build"),
        ("run_replug_lsr", "from replug_client.cli.app import run"),
        ("replug_client.corpus.store", "import numpy"),
    ],
)
def test_an_allowed_import_passes(module: str, source: str) -> None:
    assert not violations(source, module)


def pickles(source: str) -> list[str]:
    """Imports of modules that unpickle, and ``allow_pickle`` or ``weights_only`` set the unsafe way."""
    tree = ast.parse(source)
    found = [n for n in imports_of(tree, "m", False) if n.split(".")[0] in _PICKLES]
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            unsafe = {"allow_pickle": True, "weights_only": False}.get(node.arg or "")
            if unsafe is not None and node.value.value is unsafe:
                found.append(f"{node.arg}={node.value.value}")
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_pickled(path: Path) -> None:
    assert not pickles(path.read_text("utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "np.load(p, allow_pickle=True)",
        "torch.load(p, weights_only=False)",
    ],
)
def test_a_pickle_is_found(source: str) -> None:
    assert pickles(source)
