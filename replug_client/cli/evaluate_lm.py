"""`replug evaluate lm`: what the retrieved passages are worth to the language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replug_client.artefacts import default_cache_dir
from replug_client.cli import evaluate_flags as flags
from replug_client.cli.flags import (
    FILES,
    BaseUrl,
    CacheDir,
    Concurrency,
    LogLevel,
    ServerWait,
    Tokenizer,
)
from replug_client.progress import configure_logging

_LENGTH = "the run's, else 128"


def lm(
    run: flags.Run = None,
    passages: flags.CorpusOfRun = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            help="Held-out documents: CSV, TSV, JSONL, Parquet, or text (WikiText's headings begin documents).",
            show_default="the run's held-out examples",
            rich_help_panel=FILES,
        ),
    ] = None,
    passages_embeddings: flags.Embeddings = None,
    cache_dir: CacheDir = None,
    base: flags.Base = None,
    tuned: flags.Tuned = None,
    conditions: flags.Conditions = None,
    combinations: flags.Combinations = None,
    k: flags.CeilingOf = 10,
    temperature_score: flags.Gamma = None,
    seed: flags.Seed = 0,
    context_len: Annotated[
        int | None,
        typer.Option(
            "--context_len",
            min=1,
            help="Supervisor tokens of the query.",
            show_default=_LENGTH,
            rich_help_panel=flags.EXAMPLES,
        ),
    ] = None,
    pred_len: Annotated[
        int | None,
        typer.Option(
            "--pred_len",
            min=1,
            help="Supervisor tokens of the continuation.",
            show_default=_LENGTH,
            rich_help_panel=flags.EXAMPLES,
        ),
    ] = None,
    min_pred_len: Annotated[
        int | None,
        typer.Option(
            "--min_pred_len",
            min=1,
            help="Drop a last continuation below this.",
            show_default="the run's, else 16",
            rich_help_panel=flags.EXAMPLES,
        ),
    ] = None,
    sliding: Annotated[
        bool,
        typer.Option(
            "--sliding",
            help="Score each token once: continuations end to end, each behind the --context_len tokens before it.",
            rich_help_panel=flags.EXAMPLES,
        ),
    ] = False,
    skip_context: Annotated[
        bool,
        typer.Option(
            "--skip_context",
            help="With --sliding: leave a document's first --context_len tokens unscored, not just the first.",
            rich_help_panel=flags.EXAMPLES,
        ),
    ] = False,
    max_examples: flags.MaxExamples = None,
    ngram_guard: Annotated[
        int | None,
        typer.Option(
            "--ngram_guard",
            min=0,
            help="Leave out examples that share a run of this many tokens with a passage; 0: off.",
            show_default="the run's, else 0",
            rich_help_panel=flags.EXAMPLES,
        ),
    ] = None,
    model: flags.ModelOfRun = None,
    supervisor: flags.KindOfRun = None,
    base_url: BaseUrl = None,
    tokenizer: Tokenizer = None,
    concurrency: Concurrency = "auto",
    server_wait: ServerWait = None,
    dtype: flags.DtypeOfRun = None,
    device: flags.Device = None,
    retrieved_max_length: flags.RetrievedMaxLengthOfRun = None,
    separator: flags.SeparatorOfRun = None,
    output: flags.Output = None,
    markdown: flags.Markdown = None,
    per_example: Annotated[
        Path | None,
        typer.Option(
            "--per_example",
            help="JSON lines: each example's log-likelihood under each condition.",
            rich_help_panel=flags.OUT,
        ),
    ] = None,
    as_json: flags.AsJson = False,
    log_level: LogLevel = "warning",
) -> None:
    """Does the tuned retriever help the language model? Held-out text, scored behind each one's passages.

    Bits per byte, perplexity per token and log-likelihood per continuation, for each of --conditions with each of
    --combinations, on the same examples; differences to the base with intervals by paired bootstrap over documents.
    """
    configure_logging(log_level)
    from replug_client.evaluation.lm import evaluate_lm
    from replug_client.evaluation.lm_asked import LMAsked, resolve
    from replug_client.evaluation.per_example import write_per_example
    from replug_client.evaluation.run_settings import RunSettings
    from replug_client.supervisor.prompts import unescape

    settings = None if run is None else RunSettings.read(run)
    where = cache_dir or (default_cache_dir() if settings is None else settings.cache_dir)
    asked = LMAsked(
        supervisor=flags.supervisor_over_run(
            settings,
            model=model,
            kind=supervisor,
            base_url=base_url,
            tokenizer=tokenizer,
            cache_dir=where,
            concurrency=concurrency,
            server_wait=server_wait,
            dtype=dtype,
            device=device,
        ),
        cache_dir=where,
        passages=tuple(passages or ()),
        data=tuple(data or ()),
        shards=tuple(passages_embeddings or ()),
        base=base,
        tuned=tuned,
        device=device,
        conditions=tuple(conditions or ()),
        combinations=tuple(combinations or ("first",)),
        k=k,
        temperature=temperature_score,
        seed=seed,
        context_len=context_len,
        pred_len=pred_len,
        min_pred_len=min_pred_len,
        sliding=sliding,
        skip_context=skip_context,
        max_examples=max_examples,
        ngram_guard=ngram_guard,
        retrieved_max_length=retrieved_max_length,
        separator=None if separator is None else unescape(separator),
    )
    found = evaluate_lm(resolve(asked, settings))
    if per_example is not None:
        write_per_example(per_example, found.table)
    flags.show(found.result, output, markdown, as_json=as_json)
