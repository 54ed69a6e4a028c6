"""How a computation's threads wait for each other, which has to be said before torch is imported."""

from __future__ import annotations

import os


def wait_asleep() -> None:
    """Let idle OpenMP threads sleep, unless ``OMP_WAIT_POLICY`` says otherwise.

    By default they spin, on cores that others could use: the client of a server, or on one machine the server itself.
    ``benchmarks/pipeline.py`` prints the CPU time of a training run, with ``OMP_WAIT_POLICY=active`` the other one's.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
