"""Fewer collections of cycles while a training run goes on."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_THRESHOLD = 50_000


@contextmanager
def settled_heap() -> Iterator[None]:
    """What is there now is not looked through for cycles within the block, and new objects more seldom.

    A process with torch and a model holds some million objects. Each thousand of the client's (requests, answers)
    has Python look through them again and again: beside a training run this was half of what the client took.
    """
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    if before[0]:  # 0: the caller has switched it off
        gc.set_threshold(max(before[0], _THRESHOLD), *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if not frozen:  # else what the caller has frozen would be thawed
            gc.unfreeze()
