"""`replug data wikipedia`: a dump's articles as passages."""

from __future__ import annotations

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
    Workers,
    open_tokenizer,
    piece_options,
    run,
)
from replug_client.cli.flags import FILES, LogLevel
from replug_client.corpus.sources import wikipedia as source
from replug_client.progress import configure_logging


def wikipedia(
    output_dir: OutputDir,
    input_: Annotated[
        str,
        typer.Option(
            "--input",
            help="A dump (enwiki-DATE-pages-articles.xml.bz2), a folder of the hub's Parquet files, or a hub name.",
            rich_help_panel=FILES,
        ),
    ] = source.HUB_NAME,
    language: Annotated[
        str | None,
        typer.Option(
            "--language",
            help="Its code: the hub's copy in it (default: en); a dump in another one is refused.",
            rich_help_panel=FILES,
        ),
    ] = None,
    date: Annotated[
        str, typer.Option("--date", help="Of the hub's copy.", rich_help_panel=FILES)
    ] = "20231101",
    num_articles: Annotated[
        int | None,
        typer.Option("--num_articles", help="End after so many articles.", rich_help_panel=SUBSET),
    ] = None,
    num_passages: Annotated[
        int | None,
        typer.Option("--num_passages", help="End with so many passages.", rich_help_panel=SUBSET),
    ] = None,
    min_article_words: Annotated[
        int,
        typer.Option("--min_article_words", help="Shorter articles are left out.", rich_help_panel=SUBSET),
    ] = 1,
    keep_headings: Annotated[
        bool,
        typer.Option(
            "--headings/--no_headings", help="Section headings stay, as paragraphs.", rich_help_panel=PASSAGES
        ),
    ] = True,
    passage_length: PassageLength = 128,
    passage_overlap: PassageOverlap = 0,
    min_passage_length: MinPassageLength = 1,
    tokenizer: PassageTokenizer = None,
    workers: Workers = 0,
    format_: Format = "csv",
    overwrite: Overwrite = False,
    log_level: LogLevel = "info",
) -> None:
    """Wikipedia's articles as [b]passages[/b]: without templates, tables, references, files and categories."""
    configure_logging(log_level)
    pieces = piece_options(passage_length, passage_overlap, min_passage_length, tokenizer)
    options = source.WikipediaOptions(
        pieces, language, date, num_articles, num_passages, min_article_words, keep_headings
    )
    conversion = source.conversion(input_, options, open_tokenizer(tokenizer), workers)
    run(conversion, output_dir, format_, overwrite)
