"""Errors of replug: each says what was found, what was expected and what mends it."""

from __future__ import annotations

from typing import ClassVar


class ReplugError(Exception):
    """Base of every error that replug raises on purpose.

    The command line prints the message alone, without a traceback, and exits with ``exit_code``.
    """

    exit_code: ClassVar[int] = 1


class OptionError(ReplugError, ValueError):
    """An option, or a combination of options, that cannot work."""

    exit_code: ClassVar[int] = 2


class CorpusError(ReplugError, ValueError):
    """A passage or document file that cannot be read as asked: names file, row and column."""


class StaleArtefactError(ReplugError):
    """An artefact on disk was made by something other than what it is now used with."""


class ArtefactError(ReplugError):
    """An artefact is missing, incomplete or damaged."""


class TrainingDivergedError(ReplugError):
    """The loss is not finite, and no further step can mend the weights."""


class DownloadError(ReplugError):
    """A file that could not be fetched, or is not the file that was published under its name."""


class SupervisorError(ReplugError):
    """The supervisor could not give a score.

    ``retryable`` says whether the same request may succeed later (a full queue, a lost connection).
    """

    retryable: ClassVar[bool] = False


class SupervisorUnavailableError(SupervisorError):
    """No answer from the server: connection refused or reset, time-out, or a 5xx status."""

    retryable: ClassVar[bool] = True


class SupervisorRequestError(SupervisorError):
    """The server refused the request (4xx); sending it again would be refused again."""


class UnreadableAnswerError(SupervisorError):
    """The server answered 200, but the body is no JSON: cut off on its way, or a page of some proxy.

    It may be whole next time; the server is there, so it is no outage.
    """

    retryable: ClassVar[bool] = True


class SupervisorChangedError(SupervisorError):
    """Another model answers under the name of the one that the run began with."""


class WrongAnswerError(SupervisorError):
    """The server answered 200, but not with the log-probs that were asked for."""


class PromptTooLongError(SupervisorError, ValueError):
    """A prompt does not fit the supervisor's context; found before anything is sent."""
