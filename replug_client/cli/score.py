"""`replug score`: log-likelihoods of continuations, given passages."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from replug_client import __version__
from replug_client.artefacts import atomic_write, default_cache_dir, sha256_file, write_json
from replug_client.cli.flags import (
    FILES,
    SUPERVISOR,
    BaseUrl,
    CacheDir,
    Concurrency,
    Kind,
    LocalDtype,
    LogLevel,
    Model,
    RetrievedMaxLength,
    Separator,
    ServerWait,
    SupervisorKind,
    Tokenizer,
    supervisor_options,
)
from replug_client.errors import OptionError
from replug_client.progress import configure_logging, progress
from replug_client.supervisor.cached import CacheStats
from replug_client.supervisor.open import SupervisorOptions, open_supervisor
from replug_client.supervisor.prompts import PromptBuilder, unescape
from replug_client.supervisor.triples import count_pairs, read_triples, score_triples


def score(
    input_path: Annotated[
        Path,
        typer.Option(
            "--input",
            help='JSON Lines of {"query", "continuation", "passages": [...]}; "" means no passage.',
            rich_help_panel=FILES,
        ),
    ],
    output_path: Annotated[
        Path,
        typer.Option(
            "--output",
            help="The same lines with log_likelihoods (summed, nats), num_tokens, num_bytes.",
            rich_help_panel=FILES,
        ),
    ],
    model: Model,
    with_tokens: Annotated[
        bool,
        typer.Option(
            "--with_tokens",
            help="Add, per passage, prompt_ids and the continuation's token_log_probs.",
            rich_help_panel=FILES,
        ),
    ] = False,
    cache_dir: CacheDir = None,
    supervisor: SupervisorKind = Kind.SERVER,
    base_url: BaseUrl = None,
    tokenizer: Tokenizer = None,
    concurrency: Concurrency = "auto",
    server_wait: ServerWait = None,
    device: Annotated[
        str,
        typer.Option("--device", help="Of a local supervisor: auto, cpu, cuda.", rich_help_panel=SUPERVISOR),
    ] = "auto",
    dtype: LocalDtype = "auto",
    retrieved_max_length: RetrievedMaxLength = 128,
    separator: Separator = r"\n",
    log_level: LogLevel = "info",
) -> None:
    """Score continuations given passages, with a served model or one in this process."""
    configure_logging(log_level)
    options = supervisor_options(
        model=model,
        kind=supervisor,
        base_url=base_url,
        tokenizer=tokenizer,
        cache_dir=cache_dir or default_cache_dir(),
        concurrency=concurrency,
        server_wait=server_wait,
        dtype=dtype,
        device=device,
    )
    form = _Form(retrieved_max_length, unescape(separator), with_tokens)
    manifest = _score_file(input_path, output_path, options, form)
    write_json(output_path.with_name(output_path.name + ".manifest.json"), manifest)


@dataclass(frozen=True, slots=True)
class _Form:
    """How prompts are made, and what is written of them."""

    retrieved_max_length: int
    separator: str
    with_tokens: bool


def _score_file(
    input_path: Path, output_path: Path, options: SupervisorOptions, form: _Form
) -> dict[str, Any]:
    """Write the output, whole or not at all; what goes into its manifest."""
    if output_path.is_dir():
        raise OptionError(f"--output {output_path} is a folder; expected the name of a file")
    lines, pairs = count_pairs(input_path)
    supervisor, tokenizer = open_supervisor(options)
    with supervisor:
        builder = PromptBuilder(
            tokenizer,
            retrieved_max_length=form.retrieved_max_length,
            max_prompt_tokens=supervisor.max_prompt_tokens,
            separator=form.separator,
        )
        with progress("Scoring", pairs, "pairs") as advance, atomic_write(output_path, "w") as stream:
            triples = read_triples(input_path)
            for result in score_triples(
                triples, supervisor, tokenizer, builder, with_tokens=form.with_tokens, advance=advance
            ):
                stream.write(json.dumps(result, ensure_ascii=False, allow_nan=False) + "\n")
        stats: CacheStats = supervisor.stats
        name, fingerprint = supervisor.name, supervisor.fingerprint
    print(
        f"{pairs:,} pairs of {lines:,} lines scored by {name}: {stats.misses:,} asked for,"
        f" {stats.hits:,} from the cache, {stats.shared:,} the same as another; see {output_path}",
        file=sys.stderr,
    )
    return {
        "replug_version": __version__,
        "input": str(input_path),
        "input_sha256": sha256_file(input_path),
        "supervisor": {"kind": options.kind, "model": name, "fingerprint": fingerprint},
        "prompt": asdict(form),
        "lines": lines,
        "pairs": pairs,
    }
