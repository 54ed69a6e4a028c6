"""`replug demo`: the whole job on real code, with nothing to download."""

from __future__ import annotations

from typing import Annotated

import typer

from replug_client.errors import OptionError
from replug_client.progress import configure_logging


def demo(
    full: Annotated[
        bool, typer.Option("--full", help="At full size (make experiment): up to 90 minutes on two cores.")
    ] = False,
    log_level: Annotated[str, typer.Option("--log_level", help="debug, info, warning, error.")] = "info",
) -> None:
    """Train a retriever on this Python's own library with a small built-in LM, and show whether it helped."""
    configure_logging(log_level)
    try:
        from demo import pipeline
    except ModuleNotFoundError as error:
        raise OptionError(f"the demo needs a checkout of the repository ({error})") from error
    pipeline.run(pipeline.FULL if full else pipeline.DEMO)
