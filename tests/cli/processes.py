"""What each process of a launched test runs: `replug` commands one after the other, some cut short.

``torchrun --nproc-per-node 2 -m tests.cli.processes commands.json``, with a list of ``[arguments, step]``: a command
is stopped when the checkpoint of that step is whole, or runs to its end where it is null.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from replug_client.cli.app import main
from replug_client.training.callbacks import CompleteCheckpoints


class Stopped(BaseException):
    """As a kill would end it, but for the process, which goes on to the next command."""


@contextlib.contextmanager
def stopping_at(step: int | None) -> Iterator[None]:
    """Stop a training run when its checkpoint of this step is whole."""
    mark = CompleteCheckpoints.on_save

    def stop(self: CompleteCheckpoints, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        mark(self, args, state, control, **keywords)
        if state.global_step == step:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompleteCheckpoints, "on_save", stop)
        with contextlib.suppress(Stopped):
            yield
            return
    assert step is not None


def run(arguments: list[str], step: int | None = None) -> None:
    """One command to its end, or to this step's checkpoint."""
    with stopping_at(step):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert not end.value.code, f"{arguments} ended with {end.value.code}"


if __name__ == "__main__":
    for command in json.loads(Path(sys.argv[1]).read_text()):
        run(*command)
