"""Flags that several commands have: each means, and is called, the same wherever it stands."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from replug_client.supervisor.open import SupervisorOptions
from replug_client.supervisor.options import ClientOptions, LocalOptions, parse_concurrency

FILES = "Files and folders"
SUPERVISOR = "Supervisor"
PROMPT = "Prompt"
ENCODER = "Encoder (where it is to differ from the model's own, or its family's, way)"


class Kind(StrEnum):
    """Where the supervisor runs."""

    SERVER = "server"
    LOCAL = "local"


Passages = Annotated[
    list[Path],
    typer.Option(
        "--passages",
        help="Corpus: CSV, TSV, JSONL or Parquet with id and text. May be given several times.",
        rich_help_panel=FILES,
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache_dir",
        help="Keeps scores and converted corpora; no score is asked for twice.",
        show_default="~/.cache/replug",
        rich_help_panel=FILES,
    ),
]
LogLevel = Annotated[
    str, typer.Option("--log_level", help="debug, info, warning or error.", rich_help_panel=FILES)
]

Model = Annotated[
    str,
    typer.Option(
        "--model",
        help="The supervisor: the name that the server serves, or a folder.",
        rich_help_panel=SUPERVISOR,
    ),
]
SupervisorKind = Annotated[
    Kind, typer.Option("--supervisor", help="server, or local: in this process.", rich_help_panel=SUPERVISOR)
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer", help="Name or folder, where --model does not lead to it.", rich_help_panel=SUPERVISOR
    ),
]
BaseUrl = Annotated[
    list[str] | None,
    typer.Option(
        "--base_url",
        help="The server's; again, or with commas, for several that serve the same model. Default: "
        "OPENAI_BASE_URL, or http://localhost:8000/v1; a key is taken from OPENAI_API_KEY only.",
        rich_help_panel=SUPERVISOR,
    ),
]
Concurrency = Annotated[
    str,
    typer.Option(
        "--concurrency",
        help="Requests under way at once at each server; auto: as many as keep it busy.",
        rich_help_panel=SUPERVISOR,
    ),
]
ServerWait = Annotated[
    float | None,
    typer.Option(
        "--server_wait",
        min=0,
        help="Seconds to wait for a server to come back when none is left (default: 600), and, where given, for a"
        " first one at the start (default: some seconds).",
        rich_help_panel=SUPERVISOR,
    ),
]
LocalDtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="Of a local supervisor: auto, float32, bfloat16, float16.",
        rich_help_panel=SUPERVISOR,
    ),
]

RetrievedMaxLength = Annotated[
    int,
    typer.Option(
        "--retrieved_max_length",
        min=1,
        help="A passage keeps this many of its first tokens, the supervisor's.",
        rich_help_panel=PROMPT,
    ),
]
Separator = Annotated[
    str,
    typer.Option(
        "--separator", help=r"Between passage and query; \n and \t are read.", rich_help_panel=PROMPT
    ),
]

ProjectionSize = Annotated[
    int | None,
    typer.Option(
        "--projection_size",
        help="Expected length of the vectors; another one is an error.",
        rich_help_panel=ENCODER,
    ),
]
QueryPrompt = Annotated[
    str | None,
    typer.Option(
        "--query_prompt", help="Put before every query; no part of a shard.", rich_help_panel=ENCODER
    ),
]
PassagePrompt = Annotated[
    str | None,
    typer.Option("--passage_prompt", help="Put before every passage.", rich_help_panel=ENCODER),
]
Pooling = Annotated[
    str | None, typer.Option("--pooling", help="mean, cls, lasttoken or max.", rich_help_panel=ENCODER)
]
Normalize = Annotated[
    bool | None,
    typer.Option("--normalize/--no_normalize", help="Scale vectors to length 1.", rich_help_panel=ENCODER),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max_length", help="Cut the encoder's inputs at this many of its tokens.", rich_help_panel=ENCODER
    ),
]


def supervisor_options(
    *,
    model: str,
    kind: Kind,
    base_url: list[str] | None,
    tokenizer: str | None,
    cache_dir: Path,
    concurrency: str,
    server_wait: float | None,
    dtype: str,
    device: str = "auto",
    apart: bool = False,
) -> SupervisorOptions:
    """Freeze the supervisor's flags.

    Raises:
        OptionError: ``concurrency`` is neither ``auto`` nor a number.
    """
    return SupervisorOptions(
        model=model,
        kind=kind.value,
        base_url=",".join(base_url) if base_url else None,
        tokenizer=tokenizer,
        cache_dir=cache_dir,
        apart=apart,
        client=_client_options(parse_concurrency(concurrency), server_wait),
        local=LocalOptions(device=device, dtype=dtype),
    )


def _client_options(concurrency: int | Literal["auto"], server_wait: float | None) -> ClientOptions:
    options = ClientOptions(concurrency=concurrency)
    if server_wait is None:
        return options
    return replace(options, server_wait=server_wait, start_wait=server_wait)
