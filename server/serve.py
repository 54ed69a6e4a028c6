"""``python -m server``: find out, plan, say what is done, start, watch, end."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping
from contextlib import suppress

from server.detect import Build, Machine, find_build, read_machine, read_model
from server.fleet import Fleet, StopRequest
from server.hub import check_on_hub
from server.options import ServeOptions, WatchOptions
from server.plan import Plan, plan
from server.process import adopt_orphans


def make_plan(
    options: ServeOptions, python: str | None = None, environ: Mapping[str, str] = os.environ
) -> tuple[Plan, Build, Machine]:
    """Look at this machine, and plan for it.

    Raises:
        ServerError: no vLLM, no such model, too few GPUs.
    """
    model = read_model(options.model, environ)
    build = find_build(python, environ)
    machine = read_machine(environ)
    return plan(options, build, machine, model, environ), build, machine


def check_model(options: ServeOptions, environ: Mapping[str, str] = os.environ) -> None:
    """Ask the hub for a model that is not here yet.

    Raises:
        ServerError: it cannot be had.
    """
    # ModelScope is another hub, of vLLM's own choosing.
    if not read_model(options.model, environ).here and environ.get("VLLM_USE_MODELSCOPE", "0") in ("", "0"):
        check_on_hub(options.model, environ)


def serve(
    options: ServeOptions, watch: WatchOptions, *, python: str | None = None, dry_run: bool = False
) -> int:
    """Serve until a signal; the exit status.

    Returns:
        0 after a stop that was asked for; 128 + the signal's number where none was ready by then.

    Raises:
        ServerError: the servers cannot start, or cannot be kept alive; the cause.
    """
    chosen, build, machine = make_plan(options, python)
    for line in describe(chosen, build, machine):
        print(line, flush=True)
    if dry_run:
        return 0
    check_model(options, os.environ)
    started = time.monotonic()

    def say(text: str) -> None:
        with suppress(OSError):  # a screen that is gone (| head), or a full disk, must not end the servers
            print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    stop = StopRequest()
    with stop.on_signals():
        adopt_orphans()
        fleet = Fleet(chosen, os.environ, watch, say, alone=True)
        was_ready = False
        try:
            was_ready = fleet.start(stop)
            if was_ready:
                for line in announce(fleet, options):
                    say(line)
                fleet.watch(stop)
            say(f"ending ({signal.Signals(stop.signal or 0).name}); again to make haste")
        finally:
            left = fleet.end(stop)
            if left:
                say(
                    f"ended, but what was killed is still there (ps -p shows why): {', '.join(map(str, left))}"
                )
        if not left:
            say("ended; no process is left")
    return 0 if was_ready else 128 + (stop.signal or 0)


def describe(chosen: Plan, build: Build, machine: Machine) -> list[str]:
    """What was found and what is started, with a reason for each setting, as lines for the screen."""
    gpus = ", ".join(
        f"{gpu.name} ({gpu.free_gib:.0f} of {gpu.total_gib:.0f} GiB free)" for gpu in machine.gpus
    )
    found = (
        gpus if build.kind == "gpu" and gpus else f"{machine.cores} core(s), {machine.free_gib:.0f} GiB free"
    )
    lines = [f"vLLM {build.version} for the {build.kind.upper()} ({build.python}); {found}", ""]
    width = max(len(setting.text) for setting in chosen.settings)
    lines += [f"  {setting.text:<{width}}  {setting.why}" for setting in chosen.settings]
    for command in chosen.commands:
        lines += ["", command.shell()]
    lines += ["", *(f"warning: {warning}" for warning in chosen.warnings)]
    return lines if chosen.warnings else [*lines[:-1], ""]


def announce(fleet: Fleet, options: ServeOptions) -> list[str]:
    """The READY line, with all URLs, and what to do with them."""
    commands = [replica.command for replica in fleet.ready]
    urls = ",".join(command.base_url for command in commands)
    if options.host in ("0.0.0.0", "::"):
        host = socket.gethostname()
        urls = ",".join(f"http://{host}:{command.port}/v1" for command in commands)
    served = fleet.ready[0].served
    name = served.name if served else options.model
    length = served.max_model_len if served and served.max_model_len else "an unknown number of"
    key = commands[0].key_variable
    return [
        f"READY {urls} serves {name}, at most {length} tokens",
        f"In another terminal: python run_replug_lsr.py --base_url {urls} --model {name} ...",
        *([f"It asks for the key of {key}, which clients read from OPENAI_API_KEY."] if key else []),
    ]
