"""The model hub, where it cannot be reached: known in seconds, and not after a minute of attempts."""

from __future__ import annotations

import logging
import os
import socket
import sys
import urllib.parse
import urllib.request

_log = logging.getLogger(__name__)

_HUB = "https://huggingface.co"
_SECONDS = 3.0
_PORTS = {"http": 80, "https": 443}


def spare_attempts() -> None:
    """Where no connection to the hub can be made, have its library look into its cache alone, from now on.

    It would try each file five times. Behind a proxy, which alone may know the way, and where ``HF_HUB_OFFLINE``
    is set already, nothing is asked or changed.
    """
    endpoint = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or _HUB)
    host = endpoint.hostname
    proxied = endpoint.scheme in urllib.request.getproxies() or "all" in urllib.request.getproxies()
    if host is None or proxied or os.environ.get("HF_HUB_OFFLINE"):
        return
    try:
        socket.create_connection((host, endpoint.port or _PORTS.get(endpoint.scheme, 443)), _SECONDS).close()
    except OSError as error:
        _log.warning(
            "no connection to %s (%s): models are looked for in folders and its cache alone", host, error
        )
        os.environ["HF_HUB_OFFLINE"] = "1"
        # Its library has read the variable by now, if it has been imported.
        if (constants := sys.modules.get("huggingface_hub.constants")) is not None:
            vars(constants)["HF_HUB_OFFLINE"] = True
