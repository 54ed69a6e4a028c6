"""`replug data codesearchnet`: functions as passages, their documentation as queries."""

from __future__ import annotations

from typing import Annotated

import typer

from replug_client.cli.data_flags import SUBSET, Format, OutputDir, Overwrite, run
from replug_client.cli.flags import FILES, LogLevel
from replug_client.corpus.sources import codesearchnet as source
from replug_client.progress import configure_logging


def codesearchnet(
    output_dir: OutputDir,
    input_: Annotated[
        str,
        typer.Option(
            "--input",
            help="Its files: one, or a folder (python/final/jsonl), or of the hub's Parquet files; or a hub name.",
            rich_help_panel=FILES,
        ),
    ] = source.HUB_NAME,
    language: Annotated[
        str | None,
        typer.Option("--language", help=f"{', '.join(source.LANGUAGES)}; all.", rich_help_panel=SUBSET),
    ] = None,
    num_functions: Annotated[
        int | None,
        typer.Option("--num_functions", help="End after so many functions.", rich_help_panel=SUBSET),
    ] = None,
    min_docstring_words: Annotated[
        int,
        typer.Option(
            "--min_docstring_words",
            help="A function with a shorter documentation is a passage, but gives no query.",
            rich_help_panel=SUBSET,
        ),
    ] = 3,
    keep_docstrings: Annotated[
        bool,
        typer.Option(
            "--keep_docstrings",
            help="Leave Python's docstrings in the passages, although they are the queries.",
            rich_help_panel=SUBSET,
        ),
    ] = False,
    format_: Format = "csv",
    overwrite: Overwrite = False,
    log_level: LogLevel = "info",
) -> None:
    """CodeSearchNet's functions as [b]passages[/b], their documentation as [b]queries[/b], [b]qrels[/b]; and pairs.

    The pairs, by partition, are documents for --data: a documentation and, from the next line on, its function.
    """
    configure_logging(log_level)
    options = source.CodeSearchNetOptions(language, num_functions, keep_docstrings, min_docstring_words)
    run(source.conversion(input_, options), output_dir, format_, overwrite)
