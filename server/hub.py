"""Ask the hub for a model before vLLM is started: it takes a name that does not exist for minutes of patience."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from server.detect import hub_home
from server.errors import ServerError

_SECONDS = 10.0
_HUB = "https://huggingface.co"


def check_on_hub(name: str, environ: Mapping[str, str]) -> None:
    """One question to the hub's interface: is there such a model, and may it be had.

    Asked where the model would be fetched: not a folder, not in the hub's cache. ``HF_ENDPOINT`` is read from
    ``environ``, and so is where the token is (``token_of``); proxies from the process' own environment, as ``urllib``
    does. An answer that says neither yes nor no (a proxy's page, 5xx) lets vLLM try, and so does a certificate that
    is not known here: the hub's library brings its own.

    Raises:
        ServerError: no such model, no leave to have it, or no hub.
    """
    endpoint = (environ.get("HF_ENDPOINT") or _HUB).rstrip("/")
    request = urllib.request.Request(f"{endpoint}/api/models/{urllib.parse.quote(name)}")
    token = token_of(environ)
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            answer.read(1)
    except urllib.error.HTTPError as error:
        _refused(name, endpoint, error.code, bool(token))
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, ssl.SSLError):
            return
        raise ServerError(
            f"{name} is neither a folder here nor in the hub's cache, and {endpoint} cannot be asked for it"
            f" ({reason})",
            "Check the network (HTTPS_PROXY, HF_ENDPOINT), or give a folder.",
        ) from error


def token_of(environ: Mapping[str, str]) -> str | None:
    """The user's token for the hub, found as its own library does: ``HF_TOKEN``, else the file of a login."""
    token = environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    if not token.strip():
        path = Path(environ.get("HF_TOKEN_PATH") or hub_home(environ) / "token").expanduser()
        try:
            token = path.read_text("utf-8")
        except (OSError, ValueError):
            return None
    return token.strip() or None


def _refused(name: str, endpoint: str, status: int, with_token: bool) -> None:
    # Without a token the hub answers 401 for what does not exist, so as not to tell what is private.
    if status == 404 or (status == 401 and not with_token):
        raise ServerError(
            f"{endpoint} has no model {name}, or shows it only to some (status {status})",
            "Check the name given with --model; for a model that is private, log in (hf auth login), or set HF_TOKEN in"
            " the environment.",
        )
    if status in (401, 403):
        raise ServerError(
            f"{endpoint} does not give {name} to you (status {status})",
            "Accept its licence on its page, and set HF_TOKEN in the environment to a token of yours.",
        )
