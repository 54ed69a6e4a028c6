"""The flags that evaluations on a language model share; what a flag leaves open comes from a run's record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replug_client.artefacts import atomic_write
from replug_client.cli.flags import FILES, PROMPT, SUPERVISOR, Kind, supervisor_options
from replug_client.errors import OptionError
from replug_client.evaluation.conditions import RETRIEVALS

if TYPE_CHECKING:
    from replug_client.evaluation.results import EvaluationResult
    from replug_client.evaluation.run_settings import RunSettings
    from replug_client.supervisor.open import SupervisorOptions

COMPARED = "What is compared"
EXAMPLES = "Examples"
OUT = "What comes out"
_OF_RUN = "the run's"

# Files and folders
Run = Annotated[
    Path | None,
    typer.Option(
        "--run",
        help="Folder of a finished run: whatever no flag says is taken from its record.",
        rich_help_panel=FILES,
    ),
]
CorpusOfRun = Annotated[
    list[Path] | None,
    typer.Option(
        "--passages",
        help="Corpus: CSV, TSV, JSONL or Parquet with id and text. May be given several times.",
        show_default=_OF_RUN,
        rich_help_panel=FILES,
    ),
]
Embeddings = Annotated[
    list[str] | None,
    typer.Option(
        "--passages_embeddings",
        help="Shards that may serve; vectors that are missing are made, once.",
        show_default=_OF_RUN,
        rich_help_panel=FILES,
    ),
]

# What is compared
Base = Annotated[
    str | None,
    typer.Option(
        "--base", help="Base encoder: name or folder.", show_default=_OF_RUN, rich_help_panel=COMPARED
    ),
]
Tuned = Annotated[
    str | None,
    typer.Option("--tuned", help="Tuned encoder.", show_default=_OF_RUN, rich_help_panel=COMPARED),
]
Conditions = Annotated[
    list[str] | None,
    typer.Option(
        "--conditions",
        help=f"Whose passages are read: {' '.join(RETRIEVALS)}.",
        show_default="all that the encoders allow",
        rich_help_panel=COMPARED,
    ),
]
Combinations = Annotated[
    list[str] | None,
    typer.Option(
        "--combinations",
        help="How: first; concat-N, one behind the other, the most relevant last; ensemble-N, REPLUG's mixture.",
        show_default="first",
        rich_help_panel=COMPARED,
    ),
]
CeilingOf = Annotated[
    int,
    typer.Option(
        "--k", min=1, help="The ceiling is the best of the base's first k.", rich_help_panel=COMPARED
    ),
]
Gamma = Annotated[
    float | None,
    typer.Option(
        "--temperature_score",
        help="Gamma of an ensemble's weights: softmax(similarity / gamma).",
        show_default="the run's, else 1",
        rich_help_panel=COMPARED,
    ),
]
Seed = Annotated[
    int,
    typer.Option("--seed", help="Of random passages and of the intervals.", rich_help_panel=COMPARED),
]

# Examples
MaxExamples = Annotated[
    int | None,
    typer.Option("--max_examples", min=1, help="At most this many, spread evenly.", rich_help_panel=EXAMPLES),
]

# Supervisor
ModelOfRun = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="The supervisor: the name that the server serves, or a folder.",
        show_default=_OF_RUN,
        rich_help_panel=SUPERVISOR,
    ),
]
KindOfRun = Annotated[
    Kind | None,
    typer.Option(
        "--supervisor",
        help="server, or local: in this process.",
        show_default="the run's, else server",
        rich_help_panel=SUPERVISOR,
    ),
]
DtypeOfRun = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="Of a local supervisor: auto, float32, bfloat16, float16.",
        show_default="the run's, else auto",
        rich_help_panel=SUPERVISOR,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Of the encoders and of a local supervisor: cpu, cuda, cuda:1...",
        rich_help_panel=SUPERVISOR,
    ),
]

# Prompt
RetrievedMaxLengthOfRun = Annotated[
    int | None,
    typer.Option(
        "--retrieved_max_length",
        min=1,
        help="A passage keeps this many of its first tokens, the supervisor's.",
        show_default="the run's, else 128",
        rich_help_panel=PROMPT,
    ),
]
SeparatorOfRun = Annotated[
    str | None,
    typer.Option(
        "--separator",
        help=r"Behind each passage; \n and \t are read.",
        show_default=r"the run's, else \n",
        rich_help_panel=PROMPT,
    ),
]

# What comes out
Output = Annotated[Path | None, typer.Option("--output", help="The result as JSON.", rich_help_panel=OUT)]
Markdown = Annotated[
    Path | None, typer.Option("--markdown", help="The tables as Markdown.", rich_help_panel=OUT)
]
AsJson = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.", rich_help_panel=OUT)]


def supervisor_over_run(
    settings: RunSettings | None,
    *,
    model: str | None,
    kind: Kind | None,
    base_url: list[str] | None,
    tokenizer: str | None,
    cache_dir: Path,
    concurrency: str,
    server_wait: float | None,
    dtype: str | None,
    device: str | None,
) -> SupervisorOptions:
    """The supervisor that the flags name; the run's, in its precision, as far as they name none.

    Raises:
        OptionError: there is neither a run nor ``--model``.
    """
    kept = None if settings is None else settings.supervisor
    if model is None and kept is None:
        raise OptionError("no language model: name it with --model, or a run with --run")
    if kept is not None:
        kind = kind or Kind(kept.kind)
        base_url = base_url or ([kept.base_url] if kept.base_url else None)
        # Another model has another tokenizer.
        tokenizer = tokenizer or (kept.tokenizer if model is None else None)
        dtype = dtype or kept.local.dtype
        model = model or kept.model
    return supervisor_options(
        model=model or "",
        kind=kind or Kind.SERVER,
        base_url=base_url,
        tokenizer=tokenizer,
        cache_dir=cache_dir,
        concurrency=concurrency,
        server_wait=server_wait,
        dtype=dtype or "auto",
        device=device or "auto",
    )


def show(result: EvaluationResult, output: Path | None, markdown: Path | None, *, as_json: bool) -> None:
    """Write the result where it is wanted, and print it: as tables, or as JSON alone."""
    if output is not None:
        result.write(output)
    if markdown is not None:
        with atomic_write(markdown, "w") as stream:
            stream.write(result.to_markdown())
    if as_json:
        # ASCII only: what JSON may leave bare, such as C1 controls or overrides, is escaped too.
        print(json.dumps(result.to_json(), indent=2, ensure_ascii=True, allow_nan=False))
        return
    from replug_client.evaluation.terminal import open_console

    open_console().print(result.render())
