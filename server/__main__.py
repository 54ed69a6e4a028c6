"""Start and watch vLLM for scoring (``python -m server``), or try a server (``python -m server check``)."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from server.errors import ServerError
from server.options import ServeOptions, WatchOptions
from server.serve import serve


def serve_parser() -> argparse.ArgumentParser:
    """Of ``python -m server``."""
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Start vLLM, set up for scoring, and keep it alive. `python -m server check` tries a server.",
        epilog="Arguments of vLLM's own follow a --, for example: -- --tensor-parallel-size 2",
        allow_abbrev=False,
    )
    watch = WatchOptions()
    add = parser.add_argument
    add("--model", required=True, help="name on the hub, or a folder")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default %(default)s)")
    add("--port", type=int, default=8000, help="of the first server (default %(default)s)")
    add("--replicas", type=int, default=1, help="how many servers, on ports from --port on (default 1)")
    add("--max-model-len", "--max_model_len", type=int, help="longest prompt and answer together, in tokens")
    add("--dtype", help="float32, bfloat16, float16 or auto; default: by the machine")
    add("--python", help="the interpreter that has vLLM; default: this one, or .venv-vllm's")
    add("--restarts", type=int, default=watch.restarts, help="in a row, of one server (default %(default)s)")
    add(
        "--start-timeout",
        "--start_timeout",
        type=float,
        default=watch.start_timeout,
        metavar="SECONDS",
        help="until it must be ready (default %(default)s)",
    )
    add("--log-dir", "--log_dir", type=Path, help="for vLLM's own output; default: a temporary folder")
    add("--dry-run", "--dry_run", action="store_true", help="print command and environment, start nothing")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["check"]:
            from server.check import main as check

            return check(words[1:])
        own, extra = (
            (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
        )
        given = serve_parser().parse_args(own)
        options = ServeOptions(
            given.model,
            given.host,
            given.port,
            given.replicas,
            given.max_model_len,
            given.dtype,
            tuple(extra),
        )
        watch = WatchOptions(
            restarts=given.restarts, start_timeout=given.start_timeout, log_dir=given.log_dir
        )
        return serve(options, watch, python=given.python, dry_run=given.dry_run)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:  # before a server is started, or in a check
        print("interrupted", file=sys.stderr, flush=True)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
