"""`replug data msmarco`: MS MARCO's passages, queries, judgements and triples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replug_client.cli.data_flags import SUBSET, Format, OutputDir, Overwrite, Seed, run
from replug_client.cli.flags import FILES, LogLevel
from replug_client.corpus.sources import msmarco as source
from replug_client.progress import configure_logging


def _file(flag: str, text: str) -> object:
    return typer.Option(flag, help=f"{text}; plain, .gz, .bz2 or .zst.", rich_help_panel=FILES)


def msmarco(
    output_dir: OutputDir,
    collection: Annotated[Path | None, _file("--collection", "collection.tsv")] = None,
    queries: Annotated[Path | None, _file("--queries", "queries.train.tsv")] = None,
    qrels: Annotated[Path | None, _file("--qrels", "qrels.train.tsv (or BEIR's form)")] = None,
    triples: Annotated[
        Path | None, _file("--triples", "triples.train.small.tsv, or qidpidtriples.train.full.tsv")
    ] = None,
    num_passages: Annotated[
        int | None,
        typer.Option(
            "--num_passages",
            help="Keep so many: those relevant to the queries, and others drawn at random.",
            rich_help_panel=SUBSET,
        ),
    ] = None,
    num_queries: Annotated[
        int | None,
        typer.Option("--num_queries", help="Keep so many queries, drawn at random.", rich_help_panel=SUBSET),
    ] = None,
    num_triples: Annotated[
        int | None,
        typer.Option("--num_triples", help="Keep the first so many triples.", rich_help_panel=SUBSET),
    ] = None,
    held_out_every: Annotated[
        int,
        typer.Option(
            "--held_out_every",
            help="One query in so many is held out; 0: none is.",
            rich_help_panel=SUBSET,
        ),
    ] = 10,
    seed: Seed = 0,
    format_: Format = "csv",
    overwrite: Overwrite = False,
    log_level: LogLevel = "info",
) -> None:
    """MS MARCO's [b]passages[/b], [b]queries[/b], [b]qrels[/b], [b]triplets[/b]; [b]train[/b] and [b]held_out[/b].

    The last two are documents for --data: a query and, on the next line, a passage that is relevant to it.
    """
    configure_logging(log_level)
    files = source.MsMarcoFiles(collection, queries, qrels, triples)
    options = source.MsMarcoOptions(num_passages, num_queries, num_triples, held_out_every, seed)
    run(source.conversion(files, options), output_dir, format_, overwrite)
