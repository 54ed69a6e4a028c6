"""Where a server is, with which key it is asked, and whether a proxy leads there."""

from __future__ import annotations

import ipaddress
import os
import urllib.request

import httpx2

from replug_client.errors import OptionError

DEFAULT_BASE_URL = "http://localhost:8000/v1"


def default_base_url() -> str:
    """``OPENAI_BASE_URL``, or the place where vLLM listens by default."""
    return os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL


def base_urls(text: str | None) -> list[str]:
    """The servers in a list with commas between them; None takes ``default_base_url``.

    Raises:
        OptionError: none in it, or one twice.
    """
    urls = [url.strip().rstrip("/") for url in (text or default_base_url()).split(",") if url.strip()]
    if not urls:
        raise OptionError(f"--base_url {text!r} holds no URL; expected one such as {DEFAULT_BASE_URL}")
    if len(set(urls)) < len(urls):
        raise OptionError(f"--base_url names a server twice: {', '.join(urls)}")
    return urls


def check_url(base_url: str) -> None:
    """Refuse what is no address of a server.

    Raises:
        OptionError: no http(s), no host, or no port that can be.
    """
    if not base_url.startswith(("http://", "https://")):
        raise OptionError(f"--base_url must begin with http:// or https://, not {base_url!r}")
    try:
        url = httpx2.URL(base_url)
    except (httpx2.InvalidURL, ValueError) as error:
        raise OptionError(
            f"--base_url {base_url!r}: {error}; expected one such as {DEFAULT_BASE_URL}"
        ) from None
    if not url.host or not (url.port is None or 1 <= url.port <= 65535):
        found = "no host" if not url.host else f"port {url.port}, which is not between 1 and 65535"
        raise OptionError(f"--base_url {base_url!r} has {found}; expected one such as {DEFAULT_BASE_URL}")


def api_key() -> str:
    """``OPENAI_API_KEY``; a server that asks for none takes anything.

    Raises:
        OptionError: no HTTP header can carry it.
    """
    key = os.environ.get("OPENAI_API_KEY") or "none"
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        raise OptionError(
            "the key in OPENAI_API_KEY has a line break, a space at an end, or another character that no HTTP header"
            " can carry; set it again (a line break often comes from reading it out of a file)"
        )
    return key


def is_loopback(base_url: str) -> bool:
    """Whether a server is on this machine; then no proxy of the environment's leads to it."""
    host = httpx2.URL(base_url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_proxied(base_url: str) -> bool:
    """Whether the environment names a proxy that leads to a server (``HTTP_PROXY`` and the like, ``NO_PROXY``)."""
    url, proxies = httpx2.URL(base_url), urllib.request.getproxies()
    named = proxies.get(url.scheme) or proxies.get("all")
    past = any(_is_named(url.host, entry.strip().lower()) for entry in proxies.get("no", "").split(","))
    return bool(named) and not is_loopback(base_url) and not past


def _is_named(host: str, entry: str) -> bool:
    """Whether an entry of ``NO_PROXY`` surely means a host; of other forms (networks, ports) no past is made."""
    if entry.startswith("."):
        return host.endswith(entry)
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))
