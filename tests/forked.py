"""Programs in processes of their own, without importing torch and its like anew for each: ten seconds of CPU.

One process imports what the programs need, once, and forks for each of them. The child gets its own words, environment,
working directory and streams, and runs the program as ``python PROGRAM`` or ``python -m MODULE`` would.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent


def run_forked(
    words: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run ``python WORDS``, and wait for its end.

    Args:
        words: A program and its arguments, or ``-m``, a module and its arguments.
        cwd: Its working directory.
        env: Its whole environment. What libraries read when they are imported is this process's, however.
        timeout: Seconds; then it is killed, and ``subprocess.TimeoutExpired`` raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdout", "stderr")]
        job = {
            "words": list(words),
            "cwd": str(cwd),
            "env": dict(env),
            "timeout": timeout,
            "streams": list(map(str, streams)),
        }
        parent = _parent()
        assert parent.stdin is not None and parent.stdout is not None
        parent.stdin.write(json.dumps(job) + "\n")
        parent.stdin.flush()
        answer = parent.stdout.readline()
        assert answer, f"the process that forks ended with {parent.wait()}"
        status = json.loads(answer)
        said = [path.read_text(encoding="utf-8") for path in streams]
    command = [sys.executable, *words]
    if status is None:
        raise subprocess.TimeoutExpired(command, timeout, *said)
    return subprocess.CompletedProcess(command, status, *said)


@cache
def _parent() -> subprocess.Popen[str]:
    parent = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )

    def close() -> None:
        parent.communicate()

    atexit.register(close)
    return parent


def _serve() -> None:
    jobs, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    import replug_client.evaluation.lm
    import replug_client.inference.answerer
    import replug_client.supervisor.local
    import replug_client.supervisor.open
    import replug_client.training.run  # noqa: F401

    for line in jobs:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(job)
        print(json.dumps(_status(pid, job["timeout"])), file=answers, flush=True)


def _status(pid: int, timeout: float) -> int | None:
    """The exit status; minus the signal's number where one ended it, None where time did."""

    def expire(*_: Any) -> None:
        os.kill(pid, signal.SIGKILL)
        raise TimeoutError

    signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except TimeoutError:
        os.waitpid(pid, 0)
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _become(job: dict[str, Any]) -> NoReturn:
    """The child: what is asked for, and nothing of what comes after the fork."""
    status = 1
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: os._exit(status))
        for number, path in enumerate(job["streams"], start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        os.environ.clear()
        os.environ.update(job["env"])
        os.chdir(job["cwd"])
        program, *words = job["words"]
        try:
            if program == "-m":
                sys.argv = words
                runpy.run_module(words[0], run_name="__main__", alter_sys=True)
            else:
                sys.argv = [program, *words]
                runpy.run_path(program, run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        sys.stderr.flush()
    raise AssertionError("not reached")


if __name__ == "__main__":
    _serve()
