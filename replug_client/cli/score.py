"""`replug score`: log-likelihoods of continuations, given passages."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from replug_client import __version__
from replug_client.artefacts import atomic_write, default_cache_dir, sha256_file, write_json
from replug_client.progress import configure_logging, progress
from replug_client.supervisor.cached import CacheStats
from replug_client.supervisor.local import LocalOptions
from replug_client.supervisor.open import SupervisorOptions, open_supervisor
from replug_client.supervisor.options import ClientOptions, parse_concurrency
from replug_client.supervisor.prompts import PromptBuilder, unescape
from replug_client.supervisor.triples import count_pairs, read_triples, score_triples

_FILES = "Files"
_SUPERVISOR = "Supervisor"
_PROMPT = "Prompt"


class Kind(StrEnum):
    """Where the supervisor runs."""

    SERVER = "server"
    LOCAL = "local"


def score(
    input_path: Annotated[
        Path,
        typer.Option(
            "--input",
            help='JSON Lines of {"query", "continuation", "passages": [...]}; "" means no passage.',
            rich_help_panel=_FILES,
        ),
    ],
    output_path: Annotated[
        Path,
        typer.Option(
            "--output",
            help="The same lines with log_likelihoods (summed, nats), num_tokens, num_bytes.",
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
    with_tokens: Annotated[
        bool,
        typer.Option(
            "--with_tokens",
            help="Add, per passage, prompt_ids and the continuation's token_log_probs.",
            rich_help_panel=_FILES,
        ),
    ] = False,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            "--cache_dir",
            help="Where scores are kept; an interrupted run, started again, asks for no score twice.",
            rich_help_panel=_FILES,
        ),
    ] = None,
    supervisor: Annotated[
        Kind,
        typer.Option("--supervisor", help="server, or local: in this process.", rich_help_panel=_SUPERVISOR),
    ] = Kind.SERVER,
    base_url: Annotated[
        list[str] | None,
        typer.Option(
            "--base_url",
            help="The server's; again, or with commas, for several that serve the same model. Default: "
            "OPENAI_BASE_URL, or http://localhost:8000/v1; a key is taken from OPENAI_API_KEY only.",
            rich_help_panel=_SUPERVISOR,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            help="Name or folder, where --model does not lead to it.",
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
    device: Annotated[
        str,
        typer.Option("--device", help="Of a local supervisor: auto, cpu, cuda.", rich_help_panel=_SUPERVISOR),
    ] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            help="Of a local supervisor: auto, float32, bfloat16, float16.",
            rich_help_panel=_SUPERVISOR,
        ),
    ] = "auto",
    retrieved_max_length: Annotated[
        int,
        typer.Option(
            "--retrieved_max_length",
            min=1,
            help="A passage keeps this many of its first tokens, the supervisor's.",
            rich_help_panel=_PROMPT,
        ),
    ] = 128,
    separator: Annotated[
        str,
        typer.Option(
            "--separator", help=r"Between passage and query; \n and \t are read.", rich_help_panel=_PROMPT
        ),
    ] = r"\n",
    log_level: Annotated[str, typer.Option("--log_level", help="debug, info, warning or error.")] = "info",
) -> None:
    """Score continuations given passages, with a served model or one in this process."""
    configure_logging(log_level)
    options = SupervisorOptions(
        model=model,
        kind=supervisor.value,
        base_url=",".join(base_url) if base_url else None,
        tokenizer=tokenizer,
        cache_dir=cache_dir or default_cache_dir(),
        client=ClientOptions(concurrency=parse_concurrency(concurrency), server_wait=server_wait),
        local=LocalOptions(device=device, dtype=dtype),
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
