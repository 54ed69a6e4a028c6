"""`replug data wikitext`: WikiText's articles as passages and documents."""

from __future__ import annotations

from typing import Annotated

import typer

from replug_client.cli.data_flags import (
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
from replug_client.corpus.sources import wikitext as source
from replug_client.errors import OptionError
from replug_client.progress import configure_logging


def wikitext(
    output_dir: OutputDir,
    input_: Annotated[
        str,
        typer.Option(
            "--input",
            help="A file (wiki.train.raw, wiki.train.tokens), a folder of them or of Parquet files, or a hub name.",
            rich_help_panel=FILES,
        ),
    ] = source.HUB_NAME,
    config: Annotated[
        str, typer.Option("--config", help="Of the hub's data set.", rich_help_panel=FILES)
    ] = "wikitext-103-raw-v1",
    splits: Annotated[
        str, typer.Option("--splits", help="Which of them, with commas.", rich_help_panel=SUBSET)
    ] = ",".join(source.SPLITS),
    training_every: Annotated[
        int,
        typer.Option(
            "--training_every",
            help="Of the training split, one article in so many is a document to train on, the others are passages; "
            "1: all are documents, 0: none.",
            rich_help_panel=SUBSET,
        ),
    ] = 10,
    min_document_words: Annotated[
        int,
        typer.Option("--min_document_words", help="Shorter articles are left out.", rich_help_panel=SUBSET),
    ] = 1,
    detokenise: Annotated[
        bool,
        typer.Option(
            "--detokenise/--no_detokenise",
            help="Undo WikiText's spaces: 'a 10 @,@ 000 @-@ seat hall .' becomes 'a 10,000-seat hall.'",
            rich_help_panel=SUBSET,
        ),
    ] = True,
    passage_length: PassageLength = 128,
    passage_overlap: PassageOverlap = 0,
    min_passage_length: MinPassageLength = 1,
    tokenizer: PassageTokenizer = None,
    format_: Format = "csv",
    overwrite: Overwrite = False,
    log_level: LogLevel = "info",
) -> None:
    """WikiText's articles: [b]passages[/b] and [b]train[/b] from the training split, [b]validation[/b], [b]test[/b]."""
    configure_logging(log_level)
    chosen = splits.split(",")
    if unknown := set(chosen) - set(source.SPLITS):
        raise OptionError(f"--splits {splits}: {min(unknown)!r} is none of {', '.join(source.SPLITS)}")
    pieces = piece_options(passage_length, passage_overlap, min_passage_length, tokenizer)
    options = source.WikitextOptions(pieces, training_every, min_document_words, detokenise)
    conversion = source.conversion(input_, options, open_tokenizer(tokenizer), config, chosen)
    run(conversion, output_dir, format_, overwrite)
