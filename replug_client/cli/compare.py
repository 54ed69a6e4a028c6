"""`replug compare`: what tuning changed in retrieval, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from replug_client.artefacts import default_cache_dir
from replug_client.evaluation.retrieval import run_comparison
from replug_client.evaluation.terminal import open_console, render_comparison
from replug_client.evaluation.tuned_run import CompareOptions, resolve
from replug_client.progress import configure_logging

_WHAT = "What is compared"
_SHOWN = "What is shown"
_RUNNING = "Running"


def compare(
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            "--output_dir",
            help="Folder of a finished run.",
            show_default="output_finetuned_retriever",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Base encoder, not the run's.", rich_help_panel=_WHAT)
    ] = None,
    tuned: Annotated[
        str | None, typer.Option("--tuned", help="Tuned encoder, not the run's.", rich_help_panel=_WHAT)
    ] = None,
    passages: Annotated[
        list[Path] | None,
        typer.Option("--passages", help="Corpus files, not the run's.", rich_help_panel=_WHAT),
    ] = None,
    query: Annotated[
        list[str] | None,
        typer.Option("--query", help="Retrieve for this text; may be repeated.", rich_help_panel=_WHAT),
    ] = None,
    query_file: Annotated[
        Path | None,
        typer.Option(
            "--query_file",
            help="One query a line, or JSON lines with `query` (.jsonl).",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    n_docs: Annotated[
        int | None,
        typer.Option("--n_docs", help="Passages a query.", show_default="the run's", rich_help_panel=_SHOWN),
    ] = None,
    queries: Annotated[
        int,
        typer.Option("--queries", min=1, help="How many held-out queries to show.", rich_help_panel=_SHOWN),
    ] = 3,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_SHOWN)
    ] = False,
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache_dir", help="Converted corpora and indexes.", rich_help_panel=_RUNNING),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...", rich_help_panel=_RUNNING)
    ] = None,
    log_level: Annotated[
        str, typer.Option("--log_level", help="debug, info, warning or error.", rich_help_panel=_RUNNING)
    ] = "warning",
) -> None:
    """Show what the base and the tuned retriever find, side by side, each over its own index.

    Without arguments, reads the record of the last run and takes its held-out queries. Every passage
    says its rank, its similarity and how far it moved; below stand, per query and as a mean:

    overlap@k, the share of passages in common; rank-biased overlap (RBO), the same weighted towards the top
    (p = 0.9); Kendall's tau over the union of both lists, a passage that one lacks standing behind its last.
    """
    configure_logging(log_level)
    asked = resolve(
        CompareOptions(
            run=run,
            base=base,
            tuned=tuned,
            passages=tuple(passages or ()),
            queries=tuple(query or ()),
            query_file=query_file,
            n_docs=n_docs,
            device=device,
        )
    )
    comparison = run_comparison(asked, show=queries, cache_dir=cache_dir or default_cache_dir())
    if as_json:
        # ASCII only: what JSON may leave bare, such as C1 controls or overrides, is escaped too.
        print(json.dumps(comparison.to_json(), indent=2, ensure_ascii=True, allow_nan=False))
        return
    console = open_console()
    console.print(render_comparison(comparison, width=console.width))
