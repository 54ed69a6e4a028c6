"""`replug compare`: what tuning changed in retrieval, side by side."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replug_client.artefacts import atomic_write, default_cache_dir
from replug_client.cli.flags import (
    SUPERVISOR,
    BaseUrl,
    Concurrency,
    Kind,
    LocalDtype,
    RetrievedMaxLength,
    Separator,
    ServerWait,
    SupervisorKind,
    Tokenizer,
    supervisor_options,
)
from replug_client.errors import OptionError
from replug_client.progress import configure_logging
from replug_client.supervisor.open import SupervisorOptions, open_supervisor
from replug_client.supervisor.prompts import PromptBuilder, unescape

if TYPE_CHECKING:
    from replug_client.evaluation.appraisal import Appraiser
    from replug_client.evaluation.retrieval import Opened
    from replug_client.evaluation.tuned_run import Compared

_WHAT = "What is compared"
_SHOWN = "What is shown"
_SERVED = "A page that asks (--serve)"
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
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            help="Write a page that needs nothing but a browser: lists joined by lines, to search and filter.",
            rich_help_panel=_SHOWN,
        ),
    ] = None,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Serve a page where queries are typed.", rich_help_panel=_SERVED),
    ] = False,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Where --serve listens; others than this machine's own are open to its network.",
            rich_help_panel=_SERVED,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option("--port", min=0, max=65535, help="Its port; 0: any free one.", rich_help_panel=_SERVED),
    ] = 8765,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="An LM that scores each passage: the name that the server serves, or a folder.",
            rich_help_panel=SUPERVISOR,
        ),
    ] = None,
    supervisor: SupervisorKind = Kind.SERVER,
    base_url: BaseUrl = None,
    tokenizer: Tokenizer = None,
    concurrency: Concurrency = "auto",
    server_wait: ServerWait = None,
    dtype: LocalDtype = "auto",
    retrieved_max_length: RetrievedMaxLength = 128,
    separator: Separator = r"\n",
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache_dir", help="Converted corpora, indexes and scores.", rich_help_panel=_RUNNING),
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

    With --model, each passage also says what it is worth to that LM: the nats that it adds to the log-likelihood
    of what really follows the query (or, where that is not known, of the query), compared with no passage.
    """
    configure_logging(log_level)
    if serve and (as_json or html is not None):
        raise OptionError(
            "--serve goes neither with --json nor with --html: what is typed decides what is shown"
        )
    from replug_client.evaluation.comparison_page import comparison_page
    from replug_client.evaluation.retrieval import Opened, run_comparison
    from replug_client.evaluation.terminal import open_console, render_comparison
    from replug_client.evaluation.tuned_run import CompareOptions, resolve

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
            queries_later=serve,
        )
    )
    cache = cache_dir or default_cache_dir()
    options = (
        None
        if model is None
        else supervisor_options(
            model=model,
            kind=supervisor,
            base_url=base_url,
            tokenizer=tokenizer,
            cache_dir=cache,
            concurrency=concurrency,
            server_wait=server_wait,
            dtype=dtype,
        )
    )
    with _appraiser(options, retrieved_max_length, unescape(separator)) as appraiser:
        opened = Opened.of(asked, cache)
        if serve:
            _serve(asked, opened, appraiser, host, port, queries)
            return
        comparison = run_comparison(asked, opened, show=queries, appraiser=appraiser)
    if html is not None:
        with atomic_write(html, "w") as stream:
            stream.write(comparison_page(comparison, opened.common_words()))
        print(f"{len(comparison.shown):,} queries side by side: {html}", file=sys.stderr)
    if as_json:
        # ASCII only: what JSON may leave bare, such as C1 controls or overrides, is escaped too.
        print(json.dumps(comparison.to_json(), indent=2, ensure_ascii=True, allow_nan=False))
    elif html is None:
        console = open_console()
        console.print(render_comparison(comparison, width=console.width))


@contextlib.contextmanager
def _appraiser(
    options: SupervisorOptions | None, retrieved_max_length: int, separator: str
) -> Iterator[Appraiser | None]:
    """The LM, where one was named; closed in the end."""
    if options is None:
        yield None
        return
    from replug_client.evaluation.appraisal import Appraiser

    supervisor, tokenizer = open_supervisor(options)
    with supervisor:
        builder = PromptBuilder(
            tokenizer,
            retrieved_max_length=retrieved_max_length,
            max_prompt_tokens=supervisor.max_prompt_tokens,
            separator=separator,
        )
        yield Appraiser(supervisor, tokenizer, builder)


def _serve(
    asked: Compared, opened: Opened, appraiser: Appraiser | None, host: str, port: int, examples: int
) -> None:
    """Until Ctrl-C."""
    from replug_client.evaluation.comparison_page import search_page
    from replug_client.evaluation.comparison_server import ComparisonServer, Searcher
    from replug_client.evaluation.retrieval import spread

    name = None if appraiser is None else appraiser.name
    first = [asked.queries[place] for place in spread(len(asked.queries), examples)]
    page = search_page(opened.names, name, k=asked.n_docs, examples=first)
    searcher = Searcher(opened, asked.n_docs, appraiser, opened.common_words())
    with ComparisonServer(host, port, page, searcher) as server:
        print(f"Base and tuned, as you type: {server.url} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever(poll_interval=0.2)
    print("Ended.", file=sys.stderr)
