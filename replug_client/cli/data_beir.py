"""`replug data beir`: one of BEIR's data sets as passages, queries and judgements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replug_client.artefacts import default_cache_dir
from replug_client.cli.data_flags import SUBSET, Format, OutputDir, Overwrite, run
from replug_client.cli.flags import FILES, CacheDir, LogLevel
from replug_client.corpus.beir import BEIR_URL, default_split, fetch_beir
from replug_client.corpus.sources import beir as source
from replug_client.progress import configure_logging


def beir(
    data_set: Annotated[
        str,
        typer.Argument(help="Its name (scifact, nfcorpus, ...), fetched once; or a folder in BEIR's form."),
    ],
    output_dir: OutputDir,
    split: Annotated[
        str | None,
        typer.Option(
            "--split",
            help="Whose judgements; default: test, for MS MARCO dev.",
            rich_help_panel=SUBSET,
        ),
    ] = None,
    join_title: Annotated[
        bool,
        typer.Option(
            "--join_title/--no_join_title",
            help="The title begins the text, as in BEIR's own figures.",
            rich_help_panel=SUBSET,
        ),
    ] = True,
    base_url: Annotated[
        str,
        typer.Option("--beir_url", help="The folder on the web that holds NAME.zip.", rich_help_panel=FILES),
    ] = BEIR_URL,
    cache_dir: CacheDir = None,
    format_: Format = "csv",
    overwrite: Overwrite = False,
    log_level: LogLevel = "info",
) -> None:
    """A BEIR data set as [b]passages[/b], [b]queries[/b] (those with judgements) and [b]qrels[/b]."""
    configure_logging(log_level)
    folder = Path(data_set)
    if not folder.is_dir():
        folder = fetch_beir(data_set, cache_dir or default_cache_dir(), base_url=base_url)
    options = source.BeirOptions(split or default_split(folder.name), join_title)
    run(source.conversion(folder, options), output_dir, format_, overwrite)
