"""Run replug's commands as a person does: in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.end_to_end.conftest import ROOT


def replug(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run ``replug ARGUMENTS``; whatever its exit status."""
    command = [sys.executable, "-c", "from replug_client.cli.app import main; main()"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
