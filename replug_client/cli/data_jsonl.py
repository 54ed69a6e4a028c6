"""`replug data jsonl`: rows with a text in one of their fields, as passages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    open_tokenizer,
    piece_options,
    run,
)
from replug_client.cli.flags import FILES, LogLevel
from replug_client.corpus.sources import records_in as source
from replug_client.progress import configure_logging


def jsonl(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help=".jsonl (plain, .gz, .bz2, .zst), .csv, .tsv or .parquet."),
    ],
    output_dir: OutputDir,
    text_field: Annotated[
        str, typer.Option("--text_field", help="Holds the text.", rich_help_panel=FILES)
    ] = "text",
    id_field: Annotated[
        str | None,
        typer.Option("--id_field", help="Holds the id; without it rows are numbered.", rich_help_panel=FILES),
    ] = None,
    title_field: Annotated[
        str, typer.Option("--title_field", help="Holds the title, if there is one.", rich_help_panel=FILES)
    ] = "title",
    num_rows: Annotated[
        int | None, typer.Option("--num_rows", help="End after so many rows.", rich_help_panel=SUBSET)
    ] = None,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="One passage a row, whatever its length.", rich_help_panel=PASSAGES),
    ] = False,
    passage_length: PassageLength = 128,
    passage_overlap: PassageOverlap = 0,
    min_passage_length: MinPassageLength = 1,
    tokenizer: PassageTokenizer = None,
    format_: Format = "csv",
    overwrite: Overwrite = False,
    log_level: LogLevel = "info",
) -> None:
    """Rows of JSONL (or CSV, TSV, Parquet) as [b]passages[/b], cut by words or tokens."""
    configure_logging(log_level)
    pieces = piece_options(passage_length, passage_overlap, min_passage_length, tokenizer)
    options = source.RecordOptions(None if whole else pieces, text_field, id_field, title_field, num_rows)
    run(source.conversion(inputs, options, open_tokenizer(tokenizer)), output_dir, format_, overwrite)
