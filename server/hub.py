"""Ask the hub for a model before vLLM is started: it takes a name that does not exist for minutes of patience."""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping

from server.errors import ServerError

_SECONDS = 10.0
_HUB = "https://huggingface.co"


def check_on_hub(name: str, environ: Mapping[str, str]) -> None:
    """One question to the hub's interface: is there such a model, and may it be had.

    Asked where the model would be fetched: not a folder, not in the hub's cache. ``HF_ENDPOINT`` and ``HF_TOKEN``
    are read from ``environ``; proxies from the process' own environment, as ``urllib`` does. An answer that says
    neither yes nor no (a proxy's page, 5xx) lets vLLM try.

    Raises:
        ServerError: no such model, no leave to have it, or no hub.
    """
    endpoint = (environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
    request = urllib.request.Request(f"{endpoint}/api/models/{urllib.parse.quote(name)}")
    token = environ.get("HF_TOKEN")
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            answer.read(1)
    except urllib.error.HTTPError as error:
        _refused(name, endpoint, error.code, bool(token))
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ServerError(
            f"{name} is neither a folder here nor in the hub's cache, and {endpoint} cannot be asked for it"
            f" ({reason})",
            "Check the network (HTTPS_PROXY, HF_ENDPOINT), or give a folder.",
        ) from error


def _refused(name: str, endpoint: str, status: int, with_token: bool) -> None:
    # Without a token the hub answers 401 for what does not exist, so as not to tell what is private.
    if status == 404 or (status == 401 and not with_token):
        raise ServerError(
            f"{endpoint} has no model {name}, or shows it only to some (status {status})",
            "Check the name given with --model; for a model that is private, set HF_TOKEN in the environment.",
        )
    if status in (401, 403):
        raise ServerError(
            f"{endpoint} does not give {name} to you (status {status})",
            "Accept its licence on its page, and set HF_TOKEN in the environment to a token of yours.",
        )
