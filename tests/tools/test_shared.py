"""What installations share: the second into a folder waits for the first; bytecode for those who keep none."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "tools" / "shared.sh"

needs_flock = pytest.mark.skipif(shutil.which("flock") is None, reason="no flock on this system")


def installing(folder: Path, command: str) -> subprocess.Popen[str]:
    script = f'set -eu; source "{SHARED}"; alone "{folder}"; {command}'
    return subprocess.Popen(
        ["bash", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@needs_flock
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


@needs_flock
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


@needs_flock
def test_folders_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with installing(tmp_path / "one", "echo first; read -r _") as first:
        assert first.stdout is not None and first.stdout.readline() == "first\n"
        done = installing(tmp_path / "other", "echo second").communicate(timeout=60)
        assert done == ("second\n", "")
        first.communicate("\n")


@pytest.mark.parametrize(("value", "option"), [("", "--no-compile"), ("1", "--compile")])
def test_everything_is_compiled_where_python_keeps_no_bytecode(value: str, option: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f'source "{SHARED}"; compile'],
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{option}\n"
