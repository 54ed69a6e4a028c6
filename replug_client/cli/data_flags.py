"""Flags that the commands of `replug data` share, and how each of them ends."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

import typer

from replug_client.cli.flags import FILES
from replug_client.corpus.sources.conversion import Conversion, convert
from replug_client.corpus.sources.pieces import PieceOptions
from replug_client.corpus.windows import OffsetTokenizer

PASSAGES = "Passages"
SUBSET = "How much, and how it is divided"
T = TypeVar("T")

OutputDir = Annotated[
    Path,
    typer.Option(
        "--output_dir", help="Folder for the files; manifest.json is written last.", rich_help_panel=FILES
    ),
]
Format = Annotated[
    Literal["csv", "tsv", "jsonl", "parquet"],
    typer.Option("--format", help="Of the files, and their suffix.", rich_help_panel=FILES),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace what other options or another input left in --output_dir.",
        rich_help_panel=FILES,
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        min=0,
        help="Processes that convert; the result is the same. 0: this one alone.",
        rich_help_panel=FILES,
    ),
]
PassageLength = Annotated[
    int,
    typer.Option(
        "--passage_length",
        help="Of a passage: words, or tokens of --tokenizer (lines with --by lines).",
        rich_help_panel=PASSAGES,
    ),
]
PassageOverlap = Annotated[
    int,
    typer.Option(
        "--passage_overlap",
        help="So much of a passage's end begins the next one, too.",
        rich_help_panel=PASSAGES,
    ),
]
MinPassageLength = Annotated[
    int,
    typer.Option(
        "--min_passage_length",
        help="The last piece of a text is left out when it is shorter.",
        rich_help_panel=PASSAGES,
    ),
]
PassageTokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help="Folder or hub name: lengths are in its tokens. Default: words.",
        rich_help_panel=PASSAGES,
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of what is drawn.", rich_help_panel=SUBSET)]


def piece_options(length: int, overlap: int, min_length: int, tokenizer: str | None) -> PieceOptions:
    """Freeze the flags that say how texts are cut; ``tokenizer`` stands in the manifest by its last name."""
    return PieceOptions(length, overlap, min_length, None if tokenizer is None else Path(tokenizer).name)


def open_tokenizer(name: str | None) -> OffsetTokenizer | None:
    """The tokenizer that measures passages; None for words.

    Raises:
        OptionError: there is none of that name.
    """
    if name is None:
        return None
    from replug_client.supervisor.tokenizer import load_tokenizer

    return load_tokenizer(name)


def run(conversion: Conversion[T], output_dir: Path, format_: str, overwrite: bool) -> None:
    """Convert, and say what was written, what was left out and why."""
    typer.echo(str(convert(conversion, output_dir, format_, overwrite=overwrite)))
