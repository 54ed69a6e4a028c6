"""`replug data folder`: a folder of text or code as passages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from replug_client.cli.data_flags import (
    PASSAGES,
    SUBSET,
    Format,
    MinPassageLength,
    OutputDir,
    Overwrite,
    PassageLength,
    PassageOverlap,
    PassageTokenizer,
    Workers,
    open_tokenizer,
    piece_options,
    run,
)
from replug_client.cli.flags import LogLevel
from replug_client.corpus.sources import folder as source
from replug_client.progress import configure_logging


def folder(
    input_: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder, or one file.")],
    output_dir: OutputDir,
    by: Annotated[
        Literal["tokens", "lines", "functions"],
        typer.Option(
            "--by",
            help="What a passage is. functions: each function and method of Python, JavaScript, Java, Go, Ruby and "
            "PHP, and the code between them; other files by lines.",
            rich_help_panel=PASSAGES,
        ),
    ] = "tokens",
    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include", help="Only paths that fit, like '*.py'; repeatable.", rich_help_panel=SUBSET
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="No path that fits; repeatable.", rich_help_panel=SUBSET),
    ] = None,
    max_file_bytes: Annotated[
        int,
        typer.Option("--max_file_bytes", help="Larger files are left out.", rich_help_panel=SUBSET),
    ] = 1_000_000,
    passage_length: PassageLength = 128,
    passage_overlap: PassageOverlap = 0,
    min_passage_length: MinPassageLength = 1,
    tokenizer: PassageTokenizer = None,
    workers: Workers = 0,
    format_: Format = "csv",
    overwrite: Overwrite = False,
    log_level: LogLevel = "info",
) -> None:
    """The texts of a folder as [b]passages[/b], cut by tokens, by lines or by function.

    Left out, and counted: hidden files and folders, symbolic links, folders of fetched packages, binary files and
    those that are not UTF-8.
    """
    configure_logging(log_level)
    options = source.FolderOptions(
        piece_options(passage_length, passage_overlap, min_passage_length, tokenizer),
        by,
        tuple(include or ()),
        tuple(exclude or ()),
        max_file_bytes,
    )
    conversion = source.conversion(
        input_, options, open_tokenizer(tokenizer), leave=[output_dir], workers=workers
    )
    run(conversion, output_dir, format_, overwrite)
