"""Run replug's commands as a person does: in a process of their own."""

from __future__ import annotations

import os
import subprocess

from tests.end_to_end.conftest import ROOT
from tests.forked import run_forked


def replug(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run ``replug ARGUMENTS``; whatever its exit status."""
    words = ["-m", "replug_client", *map(str, arguments)]
    return run_forked(words, cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"}, timeout=timeout)
