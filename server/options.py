"""What ``python -m server`` is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from server.errors import ServerError

_PORTS = 65535


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What to serve, and where.

    Attributes:
        model: Name on the hub, or a folder.
        host: Address to listen on.
        port: Of the first server; further replicas take the ports after it.
        replicas: How many servers.
        max_model_len: Longest prompt and answer together, in tokens; None lets the plan choose.
        dtype: Of weights and activations; None lets the plan choose.
        extra: Arguments for vLLM, as they are; they win over the plan's.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    max_model_len: int | None = None
    dtype: str | None = None
    extra: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not self.model:
            raise ServerError("--model is empty", "Give a name on the hub, or a folder.")
        if self.replicas < 1:
            raise ServerError(f"--replicas must be at least 1, not {self.replicas}")
        if not 1 <= self.port <= _PORTS - self.replicas + 1:
            raise ServerError(f"--port {self.port} with {self.replicas} replica(s) leaves 1 to {_PORTS}")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ServerError(f"--max-model-len must be at least 2, not {self.max_model_len}")
        for argument in self.extra:
            self._check_extra(argument.partition("=")[0].replace("_", "-"))

    @property
    def ports(self) -> range:
        """One for each replica."""
        return range(self.port, self.port + self.replicas)

    def gives(self, flag: str) -> bool:
        """Whether ``extra`` sets ``--flag`` (or ``--no-flag``), in either spelling."""
        base = flag.removeprefix("--").removeprefix("no-")
        names = {f"--{base}", f"--no-{base}"}
        return any(argument.partition("=")[0].replace("_", "-") in names for argument in self.extra)

    def value_of(self, *flags: str) -> str | None:
        """The value that ``extra`` gives one of ``flags``."""
        for position, argument in enumerate(self.extra):
            name, equals, value = argument.partition("=")
            if name.replace("_", "-") in flags:
                following = self.extra[position + 1 : position + 2]
                return value if equals else next(iter(following), None)
        return None

    @staticmethod
    def _check_extra(flag: str) -> None:
        def means(name: str) -> bool:
            """Whether vLLM's parser may read ``flag`` as ``name``: it takes flags by their beginnings, too."""
            return len(flag) > len("--") and flag.startswith("--") and name.startswith(flag)

        if means("--api-key"):
            raise ServerError(
                "an API key on the command line can be read by everybody in the process list",
                "Leave --api-key out and put the key into the environment variable VLLM_API_KEY.",
            )
        own = ("--model", "--host", "--port", "--dtype", "--max-model-len")
        if name := next(filter(means, own), None):
            raise ServerError(f"{flag} stands after the --", f"Give {name} before it: it is an option here.")
        if flag.startswith("--ssl"):
            raise ServerError(
                f"{flag} makes vLLM speak https, and its server is watched over http",
                "Put a reverse proxy with the certificate (nginx, Caddy) before it, and leave --host at 127.0.0.1.",
            )
        if flag in ("--uds", "--headless", "--grpc"):
            raise ServerError(
                f"{flag} leaves nothing to probe over HTTP", "Start such a server with vLLM itself."
            )


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """How servers are watched.

    Attributes:
        restarts: How often in a row a server that has been ready is started again.
        first_wait: Seconds before the first restart; doubled each time.
        longest_wait: Bound of the above.
        steady: After so many seconds of health the count of restarts begins anew.
        start_timeout: Seconds until a server must be ready; a large model has to be fetched first.
        hang_timeout: Seconds without an answer to ``/health`` after which a server counts as dead.
        grace: Seconds between asking a server to end and killing it.
        interval: Seconds between two questions.
        log_dir: Where the servers' own output goes; None makes a folder for temporary files.
    """

    restarts: int = 5
    first_wait: float = 1.0
    longest_wait: float = 60.0
    steady: float = 600.0
    start_timeout: float = 3600.0
    hang_timeout: float = 120.0
    grace: float = 10.0
    interval: float = 1.0
    log_dir: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.restarts < 0:
            raise ServerError(f"--restarts must be at least 0, not {self.restarts}")
        if self.start_timeout <= 0:
            raise ServerError(f"--start-timeout must be above 0, not {self.start_timeout}")

    def wait_before(self, restart: int) -> float:
        """Seconds to wait before restart number ``restart``, the first being 1."""
        return min(self.longest_wait, self.first_wait * 2.0 ** (restart - 1))
