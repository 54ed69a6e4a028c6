"""`replug evaluate retrieval`: base, tuned, BM25 and fusions of them against judgements."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from replug_client.artefacts import atomic_write, default_cache_dir
from replug_client.cli.flags import LogLevel

_WHAT = "What is evaluated"
_ON = "On what"
_HOW = "How"
_OUT = "Where to"
_RUNNING = "Running"


class FusionKind(StrEnum):
    """How lists are fused."""

    RRF = "rrf"
    MINMAX = "minmax"


class RelevanceRule(StrEnum):
    """How the LM's scores become judgements."""

    BEST = "best"
    BETTER = "better"
    GRADED = "graded"


class ComputeDtypes(StrEnum):
    """Precision of the encoders' matrix products."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def retrieval(
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", help="Folder of a finished run: its base, tuned, passages.", rich_help_panel=_WHAT
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Base encoder, not the run's.", rich_help_panel=_WHAT)
    ] = None,
    tuned: Annotated[
        str | None, typer.Option("--tuned", help="Tuned encoder, not the run's.", rich_help_panel=_WHAT)
    ] = None,
    retrievers: Annotated[
        list[str] | None,
        typer.Option(
            "--retrievers",
            help="base, tuned, bm25, or several fused, such as tuned+bm25.",
            show_default="all there are, each encoder also fused with BM25",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    datasets: Annotated[
        list[str] | None,
        typer.Option(
            "--datasets",
            help="Folders in BEIR's form (or of such folders: CodeRAG-Bench), BEIR's names (scifact), NanoBEIR's "
            "(NanoSciFact), or owner/name on the hub. Several may follow.",
            rich_help_panel=_ON,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", help="Of the judgements.", show_default="test; msmarco: dev", rich_help_panel=_ON
        ),
    ] = None,
    passages: Annotated[
        list[Path] | None,
        typer.Option("--passages", help="A corpus of your own; default: the run's.", rich_help_panel=_ON),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option("--queries", help="Its queries: JSON lines of _id and text.", rich_help_panel=_ON),
    ] = None,
    qrels: Annotated[
        Path | None,
        typer.Option("--qrels", help="Its judgements: BEIR's or TREC's columns.", rich_help_panel=_ON),
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(
            "--scores",
            help="Judgements by the LM: triples as `replug score` wrote them, instead of queries and qrels.",
            rich_help_panel=_ON,
        ),
    ] = None,
    relevance: Annotated[
        RelevanceRule,
        typer.Option(
            "--relevance",
            help="Of scores, relevant is: best; better than no passage by --margin; graded, both (2 and 1).",
            rich_help_panel=_ON,
        ),
    ] = RelevanceRule.BEST,
    margin: Annotated[
        float, typer.Option("--margin", help="Nats per token of the continuation.", rich_help_panel=_ON)
    ] = 0.05,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            help="nDCG@k, RR@k (MRR), R@k (Recall), AP@k (MAP), P@k, Success@k (Hit), Judged@k; the first leads.",
            show_default="nDCG@10 RR@10 R@100 AP@100",
            rich_help_panel=_HOW,
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top_k",
            help="Passages retrieved for each query.",
            show_default="100, or as many as the metrics need",
            rich_help_panel=_HOW,
        ),
    ] = None,
    fusion: Annotated[
        FusionKind,
        typer.Option(
            "--fusion",
            help="rrf: reciprocal ranks, k = 60; minmax: scores scaled to 0..1.",
            rich_help_panel=_HOW,
        ),
    ] = FusionKind.RRF,
    keep_identical: Annotated[
        bool,
        typer.Option(
            "--keep_identical",
            help="A passage with the query's own id counts as a result (BEIR leaves it out).",
            rich_help_panel=_HOW,
        ),
    ] = False,
    resamples: Annotated[
        int, typer.Option("--resamples", min=1, help="Of bootstrap and test.", rich_help_panel=_HOW)
    ] = 10_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of both.", rich_help_panel=_HOW)] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", help="The result, as JSON.", rich_help_panel=_OUT)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="The tables, as Markdown.", rich_help_panel=_OUT)
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run_dir",
            help="Rankings and judgements in TREC's format, and the figures of each query.",
            rich_help_panel=_OUT,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_OUT)
    ] = False,
    pool: Annotated[
        Path | None,
        typer.Option(
            "--pool",
            help="Write triples of the run's held-out queries with all that is found, for `replug score`; and stop.",
            rich_help_panel=_OUT,
        ),
    ] = None,
    pool_depth: Annotated[
        int, typer.Option("--pool_depth", min=1, help="Passages of each retriever.", rich_help_panel=_OUT)
    ] = 10,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...", rich_help_panel=_RUNNING)
    ] = None,
    compute_dtype: Annotated[
        ComputeDtypes | None,
        typer.Option(
            "--compute_dtype",
            help="Precision when passages are embedded. Left out: over the run's own corpus that of its passage "
            "vectors, else float32.",
            rich_help_panel=_RUNNING,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch_size", min=1, help="Passages a forward pass.", rich_help_panel=_RUNNING)
    ] = 64,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            "--cache_dir",
            help="Data sets, corpora and passage vectors.",
            show_default="~/.cache/replug",
            rich_help_panel=_RUNNING,
        ),
    ] = None,
    log_level: LogLevel = "info",
) -> None:
    """Does the tuned retriever rank better? nDCG, MRR, recall and their like, each difference with its interval.

    Every retriever searches its own index of each data set's corpus. Equal scores are ordered as trec_eval orders
    them; a query without results counts 0; a passage with the query's own id is left out, as in BEIR. Differences
    to the base come with paired bootstrap intervals over queries and randomisation tests, corrected for their number.
    """
    from replug_client.evaluation.ranking.lm_relevance import LmRelevance
    from replug_client.evaluation.ranking.measures import DEFAULT_MEASURES
    from replug_client.evaluation.ranking.run import RankingOptions, evaluate_retrieval, pool_held_out
    from replug_client.evaluation.terminal import open_console
    from replug_client.progress import configure_logging

    configure_logging(log_level)
    options = RankingOptions(
        cache_dir=cache_dir or default_cache_dir(),
        run=run,
        base=base,
        tuned=tuned,
        data_sets=tuple(datasets or ()),
        split=split,
        passages=tuple(passages or ()),
        queries=queries,
        qrels=qrels,
        scores=scores,
        relevance=LmRelevance(relevance.value, margin),
        retrievers=tuple(retrievers or ()),
        measures=tuple(metrics or DEFAULT_MEASURES),
        top_k=top_k,
        fusion=fusion.value,
        keep_identical=keep_identical,
        resamples=resamples,
        seed=seed,
        device=device,
        compute_dtype=None if compute_dtype is None else compute_dtype.value,
        batch_size=batch_size,
        run_dir=run_dir,
    )
    if pool is not None:
        lines, pairs = pool_held_out(options, pool, pool_depth)
        print(
            f"{pool}: {lines:,} queries, {pairs:,} pairs. Score them with `replug score`, then give --scores."
        )
        return
    result = evaluate_retrieval(options)
    if output is not None:
        result.write(output)
    if markdown is not None:
        with atomic_write(markdown, "w") as stream:
            stream.write(result.to_markdown())
    if as_json:
        # ASCII only: what JSON may leave bare, such as C1 controls or overrides, is escaped too.
        print(json.dumps(result.to_json(), indent=2, ensure_ascii=True, allow_nan=False))
        return
    open_console().print(result.render())
