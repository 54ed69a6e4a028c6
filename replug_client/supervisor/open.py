"""One way to open a supervisor, with its cache and its tokenizer; every command goes through it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from replug_client.errors import OptionError, SupervisorError
from replug_client.supervisor.address import base_urls
from replug_client.supervisor.apart import SupervisorApart
from replug_client.supervisor.cache import ScoreCache
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.options import ClientOptions, LocalOptions
from replug_client.supervisor.server_tokenizer import ServerTokenizer
from replug_client.supervisor.tokenizer import SupervisorTokenizer, check_same_ids, load_tokenizer

if TYPE_CHECKING:
    from replug_client.supervisor.local import LocalSupervisor

_log = logging.getLogger(__name__)

_TEXT = "def f(x, y):\n    return x + 2 * y\n"  # ASCII: servers write other characters in many ways
CACHE_FILE = "scores.sqlite"


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """What a supervisor is, and where.

    Attributes:
        model: Name or folder; at a server, the name that it serves.
        kind: ``server``: an OpenAI-compatible one; ``local``: in this process.
        base_url: Of the server, with ``/v1``, or of several, with commas between them; None takes
            ``OPENAI_BASE_URL``, or vLLM's default.
        tokenizer: Name or folder of the tokenizer, where it is not to be found by ``model``.
        cache_dir: Where ``scores.sqlite`` lies; None keeps scores in memory only.
        timeout: Seconds that a server has for an answer.
        client: How a server is asked.
        local: How a local model is run.
        apart: Ask servers from a process of its own (``SupervisorApart``), as beside a training run; it only scores.
    """

    model: str
    kind: Literal["server", "local"] = "server"
    base_url: str | None = None
    tokenizer: str | None = None
    cache_dir: str | Path | None = None
    timeout: float = 600.0
    client: ClientOptions = field(default_factory=ClientOptions)
    local: LocalOptions = field(default_factory=LocalOptions)
    apart: bool = False


def open_supervisor(options: SupervisorOptions) -> tuple[CachedSupervisor, SupervisorTokenizer]:
    """Load or connect, probe, and put the score cache before it. Close it when done.

    Raises:
        OptionError: unknown model, tokenizer, device...
        SupervisorError: the server cannot be reached, or gives no scores.
    """
    if options.kind not in ("server", "local"):
        raise OptionError(f"--supervisor must be server or local, not {options.kind!r}")
    path = None if options.cache_dir is None else Path(options.cache_dir) / CACHE_FILE
    cache = ScoreCache(path)
    supervisor: LocalSupervisor | RemoteSupervisor | SupervisorApart
    try:
        if options.kind == "local":
            from replug_client.supervisor.local import (
                LocalSupervisor,  # and torch, which a server's client does without
            )

            tokenizer = load_tokenizer(options.tokenizer or options.model)
            supervisor = LocalSupervisor.load(options.model, options.local)
        else:
            urls = base_urls(options.base_url)
            supervisor = _connect(options, urls)
            try:
                tokenizer = _tokenizer_of_server(options, urls, supervisor.name)
                supervisor.check_text(tokenizer.encode(_TEXT), _TEXT)
            except BaseException:
                supervisor.close()
                raise
    except BaseException:
        cache.close()
        raise
    try:
        return CachedSupervisor(supervisor, cache), tokenizer
    except BaseException:
        supervisor.close()
        cache.close()
        raise


def _connect(options: SupervisorOptions, urls: Sequence[str]) -> RemoteSupervisor | SupervisorApart:
    if options.apart:
        try:
            return SupervisorApart(urls, options.model, options.client, timeout=options.timeout)
        except OSError as error:
            _log.warning("servers are asked from this process, for no other one can be started (%s)", error)
    servers = [Endpoint.open(url, timeout=options.timeout) for url in urls]
    return RemoteSupervisor(servers, options.model, options.client)


def _tokenizer_of_server(
    options: SupervisorOptions, base_urls: Sequence[str], name: str
) -> SupervisorTokenizer:
    try:
        server: ServerTokenizer | None = ServerTokenizer(base_urls, name, options=options.client)
    except SupervisorError as error:
        _log.warning("the tokenizer in use is not held against the server's own: %s", error)
        server = None
    tokenizer = load_tokenizer(options.tokenizer or options.model, server=server)
    if server is not None and tokenizer is not server:
        check_same_ids(tokenizer, server, name)
        server.close()
    return tokenizer
