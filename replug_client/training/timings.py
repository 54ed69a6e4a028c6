"""Seconds during which something was under way, however many at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class BusyClock:
    """Runs while at least one of the futures that it watches is not done. Safe to use from several threads.

    Args:
        now: Gives seconds that only rise.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._under_way = 0
        self._since = 0.0
        self._seconds = 0.0

    def watch(self, future: Future[Any]) -> None:
        """Run until ``future`` is done, well or not."""
        with self._lock:
            if self._under_way == 0:
                self._since = self._now()
            self._under_way += 1
        future.add_done_callback(self._ended)

    def _ended(self, _: Future[Any]) -> None:
        with self._lock:
            self._under_way -= 1
            if self._under_way == 0:
                self._seconds += self._now() - self._since

    @property
    def seconds(self) -> float:
        """So far, the time since the first of those under way included."""
        with self._lock:
            running = self._now() - self._since if self._under_way else 0.0
            return self._seconds + running
