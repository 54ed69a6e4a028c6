"""`replug embed`: turn the passages of a corpus into a shard of vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from replug_client.artefacts import default_cache_dir
from replug_client.cli.flags import (
    ENCODER,
    FILES,
    CacheDir,
    LogLevel,
    MaxLength,
    Normalize,
    PassagePrompt,
    Passages,
    Pooling,
    ProjectionSize,
    QueryPrompt,
)
from replug_client.progress import configure_logging
from replug_client.retriever.options import ComputeDtype, EncoderOptions

_WORK = "Work"


def embed(
    model_name_or_path: Annotated[
        str,
        typer.Option("--model_name_or_path", help="The encoder: a folder, or a name on the model hub."),
    ],
    passages: Passages,
    output_dir: Annotated[
        Path,
        typer.Option(
            "--output_dir",
            help="The shard goes into passages_<shard_id> in this folder.",
            rich_help_panel=FILES,
        ),
    ],
    projection_size: ProjectionSize = None,
    shard_id: Annotated[
        int, typer.Option("--shard_id", help="Which shard to make, from 0.", rich_help_panel=_WORK)
    ] = 0,
    num_shards: Annotated[
        int,
        typer.Option(
            "--num_shards",
            help="How many shards the corpus is cut into; each can be made by another process or machine.",
            rich_help_panel=_WORK,
        ),
    ] = 1,
    batch_size: Annotated[
        int,
        typer.Option(
            "--per_gpu_batch_size", "--batch_size", help="Passages a forward pass.", rich_help_panel=_WORK
        ),
    ] = 64,
    dtype: Annotated[
        Literal["float32", "float16"],
        typer.Option("--vector_dtype", help="Of the stored vectors.", rich_help_panel=_WORK),
    ] = "float32",
    compute_dtype: Annotated[
        ComputeDtype,
        typer.Option(
            "--compute_dtype",
            help="Precision of the encoder. bfloat16 is faster on a CPU that has it.",
            rich_help_panel=_WORK,
        ),
    ] = "float32",
    device: Annotated[
        str | None,
        typer.Option(
            "--device", help="cpu, cuda, cuda:1, ...; a GPU where there is one.", rich_help_panel=_WORK
        ),
    ] = None,
    query_prompt: QueryPrompt = None,
    passage_prompt: PassagePrompt = None,
    pooling: Pooling = None,
    normalize: Normalize = None,
    max_length: MaxLength = None,
    attn_implementation: Annotated[
        str | None,
        typer.Option(
            "--attn_implementation", help="sdpa, eager or flash_attention_2.", rich_help_panel=ENCODER
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust_remote_code",
            help="Run code that comes with the model. Only for models you have read.",
            rich_help_panel=ENCODER,
        ),
    ] = False,
    cache_dir: CacheDir = None,
    log_level: LogLevel = "info",
) -> None:
    """Embed the passages of a corpus, as one shard of vectors.

    An interrupted embedding goes on where it stopped when the same command runs again; a finished shard is
    left as it is, unless it was made by another encoder, of other passages or with other options.
    """
    configure_logging(log_level)
    from replug_client.corpus.store import PassageStore
    from replug_client.retriever.embedding import EmbedOptions, embed_shard
    from replug_client.retriever.encoder import check_projection_size, load_encoder

    options = EmbedOptions(shard_id, num_shards, dtype, batch_size, compute_dtype)
    encoder_options = EncoderOptions(
        model_name_or_path=model_name_or_path,
        query_prompt=query_prompt,
        passage_prompt=passage_prompt,
        pooling=pooling,
        normalize=normalize,
        max_seq_length=max_length,
        device=device,
        attn_implementation=attn_implementation,
        trust_remote_code=trust_remote_code,
    )
    store = PassageStore.open(passages, cache_dir or default_cache_dir())
    model = load_encoder(encoder_options)
    check_projection_size(model, projection_size)
    shard = embed_shard(model, store, output_dir, options, encoder_options)
    rows, dimension = shard.manifest.shape
    typer.echo(f"{shard.directory}: {rows:,} vectors of {dimension} numbers ({shard.manifest.dtype})")
