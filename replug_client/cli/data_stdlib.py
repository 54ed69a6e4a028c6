"""`replug data stdlib`: the demo's corpus, from the Python that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replug_client.cli.data_flags import SUBSET
from replug_client.cli.flags import FILES, LogLevel
from replug_client.errors import OptionError
from replug_client.progress import configure_logging


def stdlib(
    output_dir: Annotated[
        Path, typer.Option("--output_dir", help="Folder for the files.", rich_help_panel=FILES)
    ],
    files: Annotated[
        str, typer.Option("--files", help="How many files of the library, or all.", rich_help_panel=SUBSET)
    ] = "all",
    passage_fraction: Annotated[
        float,
        typer.Option(
            "--passage_fraction",
            help="The part of each file that becomes passages; the rest is a document.",
            rich_help_panel=SUBSET,
        ),
    ] = 0.5,
    held_out_every: Annotated[
        int,
        typer.Option("--held_out_every", help="One file in so many is held out.", rich_help_panel=SUBSET),
    ] = 8,
    tests: Annotated[
        bool,
        typer.Option(
            "--tests", help="The library's tests, too, where they are installed.", rich_help_panel=SUBSET
        ),
    ] = False,
    log_level: LogLevel = "info",
) -> None:
    """This Python's own library as [b]passages[/b], [b]train[/b] and [b]held_out[/b] documents: what the demo uses."""
    configure_logging(log_level)
    try:
        from demo import stdlib_corpus
    except ModuleNotFoundError as error:
        raise OptionError(f"the demo's corpus needs a checkout of the repository ({error})") from error
    stdlib_corpus.main(output_dir, files, passage_fraction, held_out_every, tests)
