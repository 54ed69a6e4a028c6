"""Messages between a process and the one that it has started, over a socket that only they have.

As ``multiprocessing`` sends objects: pickled, which is safe between the two, for nobody else can write there.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue


class Line:
    """One end. Whoever sends never waits: a thread writes, and another one, the caller's, reads.

    So the two ends cannot wait for each other, and an interrupt never leaves half a message on the way.
    """

    def __init__(self, connection: Connection, broken: Callable[[], None]) -> None:
        """``broken`` is called, in the writing thread, where nothing can be sent any more."""
        self._connection = connection
        self._broken = broken
        self.outbox: SimpleQueue[object] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="supervisor-apart-writer", daemon=True)
        self._writer.start()

    def send(self, message: object) -> None:
        """In order; from any thread, and from a finaliser."""
        self.outbox.put(message)

    def received(self) -> Iterator[object]:
        """What comes from the other end, until that is gone."""
        with suppress(EOFError, OSError):
            while True:
                yield from self._connection.recv()

    def close(self) -> None:
        """Send what is still to be sent, and close this end."""
        self.outbox.put(None)
        self._writer.join()
        self._connection.close()

    def _write(self) -> None:
        """All that there is at a time, until None comes."""
        try:
            last = False
            while not last:
                batch = [self.outbox.get()]
                with suppress(Empty):
                    while True:
                        batch.append(self.outbox.get_nowait())
                last = None in batch
                messages = [message for message in batch if message is not None]
                self._connection.send(messages)
        except OSError:  # the other end is gone
            self._broken()
        except BaseException:  # no memory, or a message that cannot travel: nobody is to wait for it for ever
            traceback.print_exc()
            self._broken()
