"""Behaves like vLLM's server from outside, and starts at once: its flags, log, routes, engine process, deaths.

Run by an interpreter of a launcher's test (`stand_in_python`). The environment says how it behaves:
STAND_IN_PIDS: a file to which it writes the ids of its processes; STAND_IN: words of what goes wrong.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MODES = frozenset(os.environ.get("STAND_IN", "").split())
PIDS = Path(os.environ["STAND_IN_PIDS"])


def log(text: str) -> None:
    print(f"(APIServer pid={os.getpid()}) INFO 11-21 12:00:00 [stand_in.py:1] {text}", flush=True)


def flag(name: str) -> str:
    for word in sys.argv[1:]:
        if word.startswith(name + "="):
            return word.partition("=")[2]
    raise SystemExit(f"stand_in.py: error: the following arguments are required: {name}")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/health":
            while (PIDS.parent / "mute").exists():
                time.sleep(0.05)
            status = 503 if (PIDS.parent / "sick").exists() else 200
            return self._reply(status, {})
        if not self._allowed():
            return self._reply(401, {"error": "Unauthorized"})
        entry = {"id": flag("--served-model-name"), "root": flag("--model"), "max_model_len": 64}
        return self._reply(200, {"data": [entry]})

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return self._reply(401, {"error": "Unauthorized"})
        rows: list[Any] = [None]
        rows += [{str(token): {"logprob": -1.0, "rank": 1}} for token in payload["prompt"][0][1:]]
        choice = {"index": 0, "prompt_logprobs": [None] if "no-scores" in MODES else rows}
        return self._reply(200, {"choices": [choice]})

    def _allowed(self) -> bool:
        key = os.environ.get("VLLM_API_KEY")
        return not key or self.headers.get("Authorization") == f"Bearer {key}"

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
STRAY = f"""
import subprocess, time
print(subprocess.Popen({SLEEP!r}, start_new_session=True).pid, flush=True)
time.sleep(600)
"""


def start_engine() -> subprocess.Popen[bytes]:
    """A child, as vLLM's engine is; if asked, one with a child in sessions of their own, as compile workers are."""
    engine = subprocess.Popen(SLEEP)
    own = [f"server {os.getpid()}", f"engine {engine.pid}"]
    if "stray" in MODES:
        stray = subprocess.Popen(
            [sys.executable, "-S", "-c", STRAY], start_new_session=True, stdout=subprocess.PIPE
        )
        assert stray.stdout is not None
        own += [f"stray {stray.pid}", f"grandchild {int(stray.stdout.readline())}"]
    with PIDS.open("a") as file:
        file.write("\n".join(own) + "\n")
    return engine


def fail_if_asked() -> None:
    if "missing-model" in MODES:
        sys.exit("ValueError: Invalid repository ID or local directory specified: 'lm'.")
    if "obscure" in MODES:
        sys.exit("ZeroDivisionError: division by zero")
    if "broken-later" in MODES and len(PIDS.read_text().splitlines()) > 2:
        sys.exit("OSError: [Errno 28] No space left on device")


def main() -> None:
    log(f"non-default args: {{'api_key': '{os.environ.get('VLLM_API_KEY')}'}}")
    engine = start_engine()

    def end(number: int, frame: Any) -> None:
        if "orderly" in MODES:  # as vLLM does
            engine.kill()
        if "stubborn" not in MODES:
            os._exit(0)  # unless orderly, the engine is left to the launcher

    signal.signal(signal.SIGTERM, end)
    fail_if_asked()
    log("Starting to load model lm...")
    if "slow" in MODES:
        time.sleep(600)
    server = ThreadingHTTPServer((flag("--host"), int(flag("--port"))), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    log("Application startup complete.")
    engine.wait()
    print("EngineCore died unexpectedly, shutting down client.", flush=True)
    os._exit(1)


if __name__ == "__main__":
    main()
