"""pytest-xdist keeps a group in one process. A pytest that it does not fit drops the groups without a word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = """
import os, pathlib, time, pytest

@pytest.mark.parametrize("number", range(4))
def test_one(number):
    time.sleep(0.1)
    with pathlib.Path("processes").open("a") as stream:
        stream.write(f"{os.getpid()}\\n")
"""
CONFTEST = """
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.xdist_group("the server"))
"""


def test_a_group_runs_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(set((tmp_path / "processes").read_text().split())) == 1
