"""`replug train`: tune a retriever to a supervisor (REPLUG LSR)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replug_client.artefacts import default_cache_dir
from replug_client.cli.flags import (
    FILES,
    BaseUrl,
    CacheDir,
    Concurrency,
    Kind,
    LocalDtype,
    LogLevel,
    MaxLength,
    Model,
    Normalize,
    PassagePrompt,
    Passages,
    Pooling,
    ProjectionSize,
    QueryPrompt,
    RetrievedMaxLength,
    Separator,
    ServerWait,
    SupervisorKind,
    Tokenizer,
    supervisor_options,
)
from replug_client.progress import configure_logging
from replug_client.retriever.encoder import EncoderOptions
from replug_client.supervisor.prompts import unescape
from replug_client.training.candidates import CandidateOptions
from replug_client.training.objectives import Aggregation, Denominator, Direction
from replug_client.training.options import (
    DataOptions,
    Keep,
    PlaceOptions,
    StepOptions,
    TargetOptions,
    Train,
    TrainOptions,
)

_RETRIEVER = "Retriever"
_EXAMPLES = "Examples and candidates"
_TARGET = "Objective"
_STEPS = "Optimisation"


def train(
    passages: Passages,
    data: Annotated[
        list[Path],
        typer.Option(
            "--data", help="Documents that examples are cut from, in the same forms.", rich_help_panel=FILES
        ),
    ],
    passages_embeddings: Annotated[
        list[str],
        typer.Option(
            "--passages_embeddings",
            help="Shards of `replug embed`: one, several, or a glob.",
            rich_help_panel=FILES,
        ),
    ],
    model: Model,
    output_dir: Annotated[
        Path, typer.Option("--output_dir", help="Where the tuned retriever goes.", rich_help_panel=FILES)
    ] = Path("output_finetuned_retriever"),
    validation_data: Annotated[
        list[Path] | None,
        typer.Option("--validation_data", help="Documents to validate on.", rich_help_panel=FILES),
    ] = None,
    validation_fraction: Annotated[
        float,
        typer.Option(
            "--validation_fraction",
            min=0.0,
            max=0.9,
            help="Share of --data's documents held out where there is no --validation_data.",
            rich_help_panel=FILES,
        ),
    ] = 0.1,
    save_or_load_index: Annotated[
        bool,
        typer.Option(
            "--save_or_load_index",
            help="Keep the FAISS index beside the shards and reuse it.",
            rich_help_panel=FILES,
        ),
    ] = False,
    cache_dir: CacheDir = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.", rich_help_panel=FILES)
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Throw away an earlier run in --output_dir.", rich_help_panel=FILES),
    ] = False,
    re_model_name_or_path: Annotated[
        str,
        typer.Option(
            "--re_model_name_or_path",
            help="The retriever's base: name or folder.",
            rich_help_panel=_RETRIEVER,
        ),
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    projection_size: ProjectionSize = None,
    train_what: Annotated[
        Train,
        typer.Option(
            "--train",
            help="query: passage vectors stay frozen; both: candidates are re-encoded in each step.",
            rich_help_panel=_RETRIEVER,
        ),
    ] = Train.QUERY,
    query_prompt: QueryPrompt = None,
    passage_prompt: PassagePrompt = None,
    pooling: Pooling = None,
    max_length: MaxLength = None,
    normalize: Normalize = None,
    train_word_embeddings: Annotated[
        bool,
        typer.Option(
            "--train_word_embeddings", help="Train the input embeddings too.", rich_help_panel=_RETRIEVER
        ),
    ] = False,
    supervisor: SupervisorKind = Kind.SERVER,
    tokenizer: Tokenizer = None,
    base_url: BaseUrl = None,
    concurrency: Concurrency = "auto",
    server_wait: ServerWait = 600.0,
    dtype: LocalDtype = "auto",
    separator: Separator = r"\n",
    retrieved_max_length: RetrievedMaxLength = 128,
    context_len: Annotated[
        int,
        typer.Option(
            "--context_len", min=1, help="Supervisor tokens of the query.", rich_help_panel=_EXAMPLES
        ),
    ] = 128,
    pred_len: Annotated[
        int,
        typer.Option(
            "--pred_len", min=1, help="Supervisor tokens of the continuation.", rich_help_panel=_EXAMPLES
        ),
    ] = 128,
    min_pred_len: Annotated[
        int,
        typer.Option(
            "--min_pred_len", min=1, help="Drop a last continuation below this.", rich_help_panel=_EXAMPLES
        ),
    ] = 16,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            min=1,
            help="Tokens between training windows; default a window.",
            rich_help_panel=_EXAMPLES,
        ),
    ] = None,
    max_examples: Annotated[
        int | None,
        typer.Option(
            "--max_examples", min=1, help="Train on at most this many examples.", rich_help_panel=_EXAMPLES
        ),
    ] = None,
    max_validation: Annotated[
        int,
        typer.Option(
            "--max_validation", min=0, help="Validate on at most this many.", rich_help_panel=_EXAMPLES
        ),
    ] = 300,
    ngram_guard: Annotated[
        int,
        typer.Option(
            "--ngram_guard",
            min=0,
            help="Leave out examples that share a run of this many tokens with a passage; 0: off.",
            rich_help_panel=_EXAMPLES,
        ),
    ] = 0,
    n_docs: Annotated[
        int,
        typer.Option(
            "--n_docs", min=0, help="The retriever's own candidates a query.", rich_help_panel=_EXAMPLES
        ),
    ] = 10,
    bm25_docs: Annotated[
        int,
        typer.Option("--bm25_docs", min=0, help="BM25's candidates beside them.", rich_help_panel=_EXAMPLES),
    ] = 4,
    random_docs: Annotated[
        int,
        typer.Option(
            "--random_docs", min=0, help="Random candidates beside them.", rich_help_panel=_EXAMPLES
        ),
    ] = 2,
    temperature_score: Annotated[
        float | None,
        typer.Option(
            "--temperature_score", help="Gamma, of P. Default: P as flat as Q.", rich_help_panel=_TARGET
        ),
    ] = None,
    temperature_gold: Annotated[
        float | None,
        typer.Option(
            "--temperature_gold", help="Beta, of Q. Default: by --gold_entropy.", rich_help_panel=_TARGET
        ),
    ] = None,
    gold_entropy: Annotated[
        float,
        typer.Option(
            "--gold_entropy",
            min=0.01,
            max=0.99,
            help="Calibrate beta to this median entropy of Q, as a share of log K.",
            rich_help_panel=_TARGET,
        ),
    ] = 0.5,
    score: Annotated[
        Aggregation, typer.Option("--score", help="How log-probs become one score.", rich_help_panel=_TARGET)
    ] = Aggregation.MEAN,
    kl: Annotated[
        Direction, typer.Option("--kl", help="p-q is KL(P||Q), q-p is KL(Q||P).", rich_help_panel=_TARGET)
    ] = Direction.P_Q,
    denominator: Annotated[
        Denominator,
        typer.Option(
            "--denominator",
            help="Which passages share P's mass: the query's candidates, or the batch's (with --kl q-p).",
            rich_help_panel=_TARGET,
        ),
    ] = Denominator.CANDIDATES,
    index_negatives: Annotated[
        int,
        typer.Option(
            "--index_negatives",
            min=0,
            help="Passages drawn from the whole index into the batch's denominator (--train query).",
            rich_help_panel=_TARGET,
        ),
    ] = 0,
    per_gpu_batch_size: Annotated[
        int,
        typer.Option(
            "--per_gpu_batch_size", min=1, help="Examples a step and process.", rich_help_panel=_STEPS
        ),
    ] = 4,
    gradient_accumulation_steps: Annotated[
        int,
        typer.Option(
            "--gradient_accumulation_steps", min=1, help="Batches an optimiser step.", rich_help_panel=_STEPS
        ),
    ] = 1,
    learning_rate: Annotated[
        float, typer.Option("--learning_rate", help="Peak.", rich_help_panel=_STEPS)
    ] = 2e-5,
    warmup_ratio: Annotated[
        float,
        typer.Option("--warmup_ratio", min=0.0, max=0.99, help="Share of the steps.", rich_help_panel=_STEPS),
    ] = 0.1,
    weight_decay: Annotated[float, typer.Option("--weight_decay", min=0.0, rich_help_panel=_STEPS)] = 0.01,
    dropout: Annotated[
        float, typer.Option("--dropout", min=0.0, max=0.9, help="While training.", rich_help_panel=_STEPS)
    ] = 0.0,
    epochs: Annotated[int, typer.Option("--epochs", min=1, rich_help_panel=_STEPS)] = 1,
    max_steps: Annotated[
        int | None,
        typer.Option("--max_steps", min=1, help="Stop after this many steps.", rich_help_panel=_STEPS),
    ] = None,
    refresh_every: Annotated[
        int,
        typer.Option(
            "--refresh_every",
            min=0,
            help="Steps between retrievals with the current retriever (--train both: and re-embeddings); 0: never.",
            rich_help_panel=_STEPS,
        ),
    ] = 100,
    eval_every: Annotated[
        int,
        typer.Option(
            "--eval_every", min=0, help="Steps between validations; 0: four in all.", rich_help_panel=_STEPS
        ),
    ] = 0,
    keep: Annotated[
        Keep,
        typer.Option(
            "--keep", help="The weights that were best in validation, or the last.", rich_help_panel=_STEPS
        ),
    ] = Keep.BEST,
    bf16: Annotated[
        bool, typer.Option("--bf16/--no_bf16", help="bfloat16 autocast.", rich_help_panel=_STEPS)
    ] = True,
    seed: Annotated[int, typer.Option("--seed", rich_help_panel=_STEPS)] = 0,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, cuda:1...", rich_help_panel=_STEPS)
    ] = None,
    log_level: LogLevel = "info",
) -> None:
    """Tune a retriever so that what it finds makes the supervisor predict the right continuation.

    Reads the passages and their embeddings, cuts the documents into queries and continuations, asks the
    supervisor how likely each continuation is behind each candidate passage, and trains the retriever towards
    the passages that help (REPLUG LSR, Shi et al. 2023). An interrupted run goes on with --resume; a score
    is never asked for twice.
    """
    configure_logging(log_level)
    cache_dir = cache_dir or default_cache_dir()
    # Imported here: torch and transformers take seconds, which --help should not wait for.
    from replug_client.training.run import train_retriever

    train_retriever(
        TrainOptions(
            data=DataOptions(
                passages=tuple(passages),
                passages_embeddings=tuple(passages_embeddings),
                data=tuple(data),
                validation_data=tuple(validation_data or ()),
                validation_fraction=validation_fraction,
                max_validation=max_validation,
                context_len=context_len,
                pred_len=pred_len,
                min_pred_len=min_pred_len,
                stride=stride,
                max_examples=max_examples,
                ngram_guard=ngram_guard,
            ),
            encoder=EncoderOptions(
                model_name_or_path=re_model_name_or_path,
                query_prompt=query_prompt,
                passage_prompt=passage_prompt,
                pooling=pooling,
                normalize=normalize,
                max_seq_length=max_length,
                device=device,
            ),
            supervisor=supervisor_options(
                model=model,
                kind=supervisor,
                base_url=base_url,
                tokenizer=tokenizer,
                cache_dir=cache_dir,
                concurrency=concurrency,
                server_wait=server_wait,
                dtype=dtype,
            ),
            place=PlaceOptions(output_dir, cache_dir, resume, overwrite, save_or_load_index),
            candidates=CandidateOptions(n_docs, bm25_docs, random_docs),
            target=TargetOptions(
                temperature_score, temperature_gold, gold_entropy, score, kl, denominator, index_negatives
            ),
            steps=StepOptions(
                train=train_what,
                batch_size=per_gpu_batch_size,
                learning_rate=learning_rate,
                epochs=epochs,
                max_steps=max_steps,
                warmup_ratio=warmup_ratio,
                weight_decay=weight_decay,
                accumulation=gradient_accumulation_steps,
                refresh_every=refresh_every,
                eval_every=eval_every,
                keep=keep,
                dropout=dropout,
                train_word_embeddings=train_word_embeddings,
                bf16=bf16,
                seed=seed,
            ),
            retrieved_max_length=retrieved_max_length,
            separator=unescape(separator),
            projection_size=projection_size,
        )
    )
