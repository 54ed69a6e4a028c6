"""What the tests of the client share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closed when the test ends."""
    with ExitStack() as exit_stack:
        yield exit_stack
