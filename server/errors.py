"""The launcher's one error: a cause, and what mends it. It needs nothing but Python."""

from __future__ import annotations


class ServerError(Exception):
    """The server cannot be started, or cannot be used for training.

    The command line prints ``cause`` and ``mend``, without a traceback, and exits with 1.
    """

    def __init__(self, cause: str, mend: str = "") -> None:
        """``cause``: what was found, and what was expected; ``mend``: what to do about it."""
        super().__init__(f"{cause}\n  {mend}" if mend else cause)
        self.cause = cause
        self.mend = mend
