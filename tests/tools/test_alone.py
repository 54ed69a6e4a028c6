"""Two installations into one folder: the second waits for the first, and for what a killed one has left running."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ALONE = Path(__file__).parents[2] / "tools" / "alone.sh"

pytestmark = pytest.mark.skipif(shutil.which("flock") is None, reason="no flock on this system")


def installing(folder: Path, command: str) -> subprocess.Popen[str]:
    script = f'set -eu; source "{ALONE}"; alone "{folder}"; {command}'
    return subprocess.Popen(
        ["bash", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_second_says_that_it_waits_and_goes_on_when_the_first_ends(tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    with installing(folder, "echo first; read -r _") as first:
        assert first.stdout is not None and first.stdout.readline() == "first\n"
        with installing(folder, "echo second") as second:
            assert second.stderr is not None
            assert (
                second.stderr.readline()
                == f"another installation into {folder} is going on; waiting for it to end\n"
            )
            assert second.poll() is None
            first.communicate("\n")
            assert second.communicate()[0] == "second\n"


def test_a_child_of_a_killed_one_keeps_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "venv"
    with installing(folder, "(read -r _; exit) <&0 & echo begun; wait") as killed:
        assert killed.stdout is not None and killed.stdout.readline() == "begun\n"
        killed.kill()
        killed.wait()
        with installing(folder, "echo second") as second:
            assert second.stderr is not None
            assert "waiting" in second.stderr.readline()
            assert killed.stdin is not None
            killed.stdin.write("\n")
            killed.stdin.close()
            assert second.communicate()[0] == "second\n"


def test_folders_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with installing(tmp_path / "one", "echo first; read -r _") as first:
        assert first.stdout is not None and first.stdout.readline() == "first\n"
        done = installing(tmp_path / "other", "echo second").communicate(timeout=60)
        assert done == ("second\n", "")
        first.communicate("\n")
