"""What a server has answered since it was last known to be as it was.

Another model may come behind a connection that never breaks: a rolling update behind nginx, Envoy or Kubernetes.
So a server is held against the canary now and then while it works, and once at the end; where it fails, what it has
answered since the last time is taken back out of the score cache. A driver that is killed, or the process that asks
for it (``SupervisorApart``), cannot do so: what came in the last ``ClientOptions.canary_every`` seconds is kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from replug_client.errors import SupervisorChangedError
from replug_client.supervisor.protocol import Retract

_log = logging.getLogger(__name__)

_TIMES = 3  # a differing canary is asked for so often in all: what it decides is final


class Proof:
    """Keeps, for one server, how to take back each answer that no canary has confirmed yet."""

    def __init__(self, check: Callable[[], Awaitable[None]], pause: float) -> None:
        """``check`` raises ``SupervisorChangedError`` where another model answers; ``pause``: seconds."""
        self._check = check
        self._pause = pause
        self._unproved: list[Retract] = []
        self._tried = time.monotonic()
        self._suspect = False

    @property
    def is_open(self) -> bool:
        """Whether there is an answer that the next canary is to confirm."""
        return bool(self._unproved)

    def add(self, retract: Retract) -> None:
        """Note an answer that has been kept."""
        self._unproved.append(retract)

    def is_due(self, seconds: float) -> bool:
        """Whether the canary was asked for longer ago than that."""
        return time.monotonic() - self._tried >= seconds

    async def hold(self, times: int = _TIMES) -> None:
        """Ask for the canary; where it differs, again, up to ``times`` in all.

        One that differs and then does not confirms nothing: there may be two models behind one address.

        Raises:
            SupervisorChangedError: it differed each time.
            SupervisorError: there is no answer, or a wrong one.
        """
        # What comes while the canary is under way may be of another model; it is for the next one.
        pending, self._unproved = self._unproved, []
        self._tried = time.monotonic()
        proved = False
        try:
            for left in reversed(range(times)):
                try:
                    await self._check()
                except SupervisorChangedError as error:
                    self._suspect = True
                    if not left:
                        raise
                    _log.warning("%s It is asked %d more times before that counts.", error, left)
                    await asyncio.sleep(self._pause)
                else:
                    proved, self._suspect = not self._suspect, False
                    return
        finally:
            if not proved:
                self._unproved = pending + self._unproved

    def retract(self) -> None:
        """Take back what no canary has confirmed."""
        unproved, self._unproved = self._unproved, []
        for retract in unproved:
            try:
                retract()
            except Exception:  # the server is out in any case, and the others' answers are to be taken back
                _log.exception("some scores of another model could not be taken out of the score cache")
