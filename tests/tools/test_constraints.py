"""The lock file, and the constraints that the installer makes of it."""

from __future__ import annotations

import importlib.util
import itertools
import re
import tomllib
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LOCK: dict[str, Any] = tomllib.loads((ROOT / "poetry.lock").read_text("utf-8"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = (
    ("linux", "Linux", "x86_64"),
    ("linux", "Linux", "aarch64"),
    ("darwin", "Darwin", "arm64"),
)


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("constraints", ROOT / "tools" / "constraints.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def environment(python: str, platform: tuple[str, str, str], extra: str) -> dict[str, str]:
    system, name, machine = platform
    return {
        "python_version": python,
        "python_full_version": f"{python}.4",
        "sys_platform": system,
        "platform_system": name,
        "platform_machine": machine,
        "os_name": "posix",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "extra": extra,
    }


def holds(marker: str | dict[str, str] | None, where: dict[str, str]) -> bool:
    if isinstance(marker, dict):
        marker = marker.get("main")
    return not marker or Marker(marker).evaluate(where)


@pytest.mark.parametrize(("python", "platform"), list(itertools.product(PYTHONS, PLATFORMS)))
@pytest.mark.parametrize("extra", ["", "demo", "dev", "server", "gpu"])
def test_the_lock_has_one_version_of_each_package(
    python: str, platform: tuple[str, str, str], extra: str
) -> None:
    where = environment(python, platform, extra)
    versions: dict[str, list[str]] = defaultdict(list)
    for package in LOCK["package"]:
        if holds(package.get("markers"), where):
            versions[package["name"]].append(package["version"])
    assert not {name: found for name, found in versions.items() if len(found) > 1}


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_satisfies_what_the_project_asks_for(python: str) -> None:
    where = environment(python, PLATFORMS[0], "")
    locked = {p["name"]: p["version"] for p in LOCK["package"] if holds(p.get("markers"), where)}
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked[requirement.name]), requirement


def test_the_lock_names_no_source_but_the_public_package_index() -> None:
    text = (ROOT / "poetry.lock").read_text("utf-8")
    assert "[package.source]" not in text
    assert not re.search(r"^(url|file) = ", text, flags=re.MULTILINE)
    assert not re.search(r"\{(url|path) = ", text)


def test_every_file_in_the_lock_has_a_hash() -> None:
    for package in LOCK["package"]:
        assert package["files"], package["name"]
        assert all(file["hash"].startswith("sha256:") for file in package["files"])


@pytest.mark.parametrize("python", PYTHONS)
def test_the_constraints_pin_each_direct_dependency_once(python: str) -> None:
    where = environment(python, PLATFORMS[0], "")
    pins: dict[str, list[Requirement]] = defaultdict(list)
    for line in load().constraints(LOCK):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(where):
            pins[requirement.name].append(requirement)
    direct = [Requirement(text).name for text in PROJECT["dependencies"]]
    assert {name: len(pins[name]) for name in direct} == dict.fromkeys(direct, 1)
    assert all(len(found) == 1 for found in pins.values())


def test_versions_of_one_extra_alone_and_of_a_cuda_build_are_no_constraint() -> None:
    packages = [
        {"name": "a", "version": "1"},
        {"name": "b", "version": "1", "markers": 'python_version < "3.12"'},
        {"name": "b", "version": "2", "markers": 'python_version >= "3.12"'},
        {"name": "c", "version": "1", "markers": 'extra == "server"'},
        {"name": "c", "version": "2"},
        {"name": "nvidia-cublas", "version": "13"},
    ]
    assert load().constraints({"package": packages}) == [
        "a==1",
        'b==1 ; python_version < "3.12"',
        'b==2 ; python_version >= "3.12"',
        "c==2",
    ]
