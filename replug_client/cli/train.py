"""`replug train`: tune a retriever to a supervisor (REPLUG LSR)."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from replug_client.artefacts import default_cache_dir
from replug_client.progress import configure_logging
from replug_client.retriever.encoder import EncoderOptions
from replug_client.supervisor.local import LocalOptions
from replug_client.supervisor.open import SupervisorOptions
from replug_client.supervisor.options import ClientOptions, parse_concurrency
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

_FILES = "Files and folders"
_RETRIEVER = "Retriever"
_SUPERVISOR = "Supervisor"
_EXAMPLES = "Examples and candidates"
_TARGET = "Objective"
_STEPS = "Optimisation"


class Kind(StrEnum):
    """Where the supervisor runs."""

    SERVER = "server"
    LOCAL = "local"


def train(
    passages: Annotated[
        list[Path],
        typer.Option(
            "--passages", help="Corpus: CSV, TSV, JSONL or Parquet with id and text.", rich_help_panel=_FILES
        ),
    ],
    data: Annotated[
        list[Path],
        typer.Option(
            "--data", help="Documents that examples are cut from, in the same forms.", rich_help_panel=_FILES
        ),
    ],
    passages_embeddings: Annotated[
        list[str],
        typer.Option(
            "--passages_embeddings",
            help="Shards of `replug embed`: one, several, or a glob.",
            rich_help_panel=_FILES,
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="The supervisor: the name that the server serves, or a folder.",
            rich_help_panel=_SUPERVISOR,
        ),
    ],
    output_dir: Annotated[
        Path, typer.Option("--output_dir", help="Where the tuned retriever goes.", rich_help_panel=_FILES)
    ] = Path("output_finetuned_retriever"),
    validation_data: Annotated[
        list[Path] | None,
        typer.Option("--validation_data", help="Documents to validate on.", rich_help_panel=_FILES),
    ] = None,
    validation_fraction: Annotated[
        float,
        typer.Option(
            "--validation_fraction",
            min=0.0,
            max=0.9,
            help="Share of --data's documents held out where there is no --validation_data.",
            rich_help_panel=_FILES,
        ),
    ] = 0.1,
    save_or_load_index: Annotated[
        bool,
        typer.Option(
            "--save_or_load_index",
            help="Keep the FAISS index beside the shards and reuse it.",
            rich_help_panel=_FILES,
        ),
    ] = False,
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache_dir", help="Score cache and converted corpora.", rich_help_panel=_FILES),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.", rich_help_panel=_FILES)
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Throw away an earlier run in --output_dir.", rich_help_panel=_FILES
        ),
    ] = False,
    re_model_name_or_path: Annotated[
        str,
        typer.Option(
            "--re_model_name_or_path",
            help="The retriever's base: name or folder.",
            rich_help_panel=_RETRIEVER,
        ),
    ] = "sentence-transformers/all-MiniLM-L6-v2",
    projection_size: Annotated[
        int | None,
        typer.Option(
            "--projection_size", help="Checked against the retriever's dimension.", rich_help_panel=_RETRIEVER
        ),
    ] = None,
    train_what: Annotated[
        Train,
        typer.Option(
            "--train",
            help="query: passage vectors stay frozen; both: candidates are re-encoded in each step.",
            rich_help_panel=_RETRIEVER,
        ),
    ] = Train.QUERY,
    query_prompt: Annotated[
        str | None,
        typer.Option("--query_prompt", help="Instead of the model's own.", rich_help_panel=_RETRIEVER),
    ] = None,
    passage_prompt: Annotated[
        str | None,
        typer.Option("--passage_prompt", help="Instead of the model's own.", rich_help_panel=_RETRIEVER),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            "--pooling", help="Instead of the model's own: cls, mean...", rich_help_panel=_RETRIEVER
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max_length", help="Longest input of the retriever, in its tokens.", rich_help_panel=_RETRIEVER
        ),
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no_normalize", help="Instead of the model's own.", rich_help_panel=_RETRIEVER
        ),
    ] = None,
    train_word_embeddings: Annotated[
        bool,
        typer.Option(
            "--train_word_embeddings", help="Train the input embeddings too.", rich_help_panel=_RETRIEVER
        ),
    ] = False,
    supervisor: Annotated[
        Kind,
        typer.Option("--supervisor", help="server, or local: in this process.", rich_help_panel=_SUPERVISOR),
    ] = Kind.SERVER,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            help="Name or folder, where --model does not lead to it.",
            rich_help_panel=_SUPERVISOR,
        ),
    ] = None,
    base_url: Annotated[
        list[str] | None,
        typer.Option(
            "--base_url",
            help="The server's; again, or with commas, for several that serve the same model. Default: "
            "OPENAI_BASE_URL, or http://localhost:8000/v1; a key is taken from OPENAI_API_KEY only.",
            rich_help_panel=_SUPERVISOR,
        ),
    ] = None,
    concurrency: Annotated[
        str,
        typer.Option(
            "--concurrency",
            help="Requests under way at once at each server; auto: as many as keep it busy.",
            rich_help_panel=_SUPERVISOR,
        ),
    ] = "auto",
    server_wait: Annotated[
        float,
        typer.Option(
            "--server_wait",
            min=0,
            help="Seconds to wait for a server to come back when none is left.",
            rich_help_panel=_SUPERVISOR,
        ),
    ] = 600.0,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", help="Of a local supervisor: auto, float32, bfloat16.", rich_help_panel=_SUPERVISOR
        ),
    ] = "auto",
    separator: Annotated[
        str,
        typer.Option(
            "--separator", help=r"Between passage and query; \n and \t are read.", rich_help_panel=_SUPERVISOR
        ),
    ] = r"\n",
    retrieved_max_length: Annotated[
        int,
        typer.Option(
            "--retrieved_max_length", min=1, help="Supervisor tokens of a passage.", rich_help_panel=_EXAMPLES
        ),
    ] = 128,
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
    log_level: Annotated[
        str, typer.Option("--log_level", help="debug, info, warning, error.", rich_help_panel=_FILES)
    ] = "info",
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
            supervisor=SupervisorOptions(
                kind=supervisor.value,
                model=model,
                base_url=",".join(base_url) if base_url else None,
                tokenizer=tokenizer,
                cache_dir=cache_dir,
                client=ClientOptions(concurrency=parse_concurrency(concurrency), server_wait=server_wait),
                local=LocalOptions(dtype=dtype),
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
