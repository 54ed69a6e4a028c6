"""`replug data overlap`: what corpus, training and evaluation share; and copies without it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replug_client.artefacts import MANIFEST_NAME, write_json
from replug_client.cli.data_flags import open_tokenizer
from replug_client.cli.flags import FILES, LogLevel
from replug_client.corpus.copies import drop_shared
from replug_client.corpus.set_overlap import PairOverlap, find_set_overlap
from replug_client.corpus.sources.inputs import hashed
from replug_client.corpus.text_runs import TextSet
from replug_client.errors import OptionError
from replug_client.evaluation.terminal import visible
from replug_client.progress import configure_logging

_CHECK = "What counts as shared"
# Of each set, what it is cleaned of: evaluation stays as it is.
_CLEANED_OF = {"passages": ("evaluation",), "data": ("evaluation", "passages")}


def overlap(
    passages: Annotated[
        list[Path] | None,
        typer.Option("--passages", help="The corpus; may be given several times.", rich_help_panel=FILES),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data", help="Documents to train on; may be given several times.", rich_help_panel=FILES
        ),
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            "--evaluation",
            help="Held-out documents or queries; may be given several times.",
            rich_help_panel=FILES,
        ),
    ] = None,
    ngram: Annotated[
        int, typer.Option("--ngram", min=1, help="Length of a run, in words.", rich_help_panel=_CHECK)
    ] = 13,
    min_share: Annotated[
        float,
        typer.Option(
            "--min_share",
            help="An item counts when more than this part of its runs is shared; 0: when one is.",
            rich_help_panel=_CHECK,
        ),
    ] = 0.0,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="Runs of its tokens instead of words.", rich_help_panel=_CHECK),
    ] = None,
    drop: Annotated[
        bool,
        typer.Option(
            "--drop",
            help="Write copies to --output_dir: of --passages without what evaluation has, of --data without what "
            "evaluation or the corpus has. Evaluation stays as it is.",
            rich_help_panel=FILES,
        ),
    ] = False,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output_dir", help="For overlap.json and the copies.", rich_help_panel=FILES),
    ] = None,
    log_level: LogLevel = "info",
) -> None:
    """Which items of corpus, training and evaluation share runs of words: how many, and the worst of them."""
    configure_logging(log_level)
    files = {"passages": passages, "data": data, "evaluation": evaluation}
    sets = [TextSet(name, tuple(paths)) for name, paths in files.items() if paths]
    if len(sets) < 2:
        raise OptionError("give at least two of --passages, --data and --evaluation")
    if drop and output_dir is None:
        raise OptionError("--drop writes copies; say where with --output_dir")
    if not 0 <= min_share < 1:
        raise OptionError(f"--min_share is {min_share}; expected 0 or more, and less than 1")
    report = find_set_overlap(sets, n=ngram, min_share=min_share, tokenizer=open_tokenizer(tokenizer))
    for pair in report.pairs:
        typer.echo(_described(pair, ngram))
    if output_dir is None:
        return
    copies = drop_shared(report, sets, output_dir, _CLEANED_OF) if drop else {}
    inputs = {items.name: hashed(items.paths) for items in sets}
    options = {"tokenizer": tokenizer, "drop": drop}
    for name, copy in copies.items():
        typer.echo(f"{output_dir / name}: {copy['rows']:,} rows; left out: {_counts(copy['left_out'])}")
    write_json(output_dir / "overlap.json", {"options": options, "inputs": inputs, **report.to_json()})
    if drop:
        write_json(output_dir / MANIFEST_NAME, {"made_by": "replug data overlap", "outputs": copies})


def _counts(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in left_out.items())


def _described(pair: PairOverlap, ngram: int) -> str:
    share = f" ({pair.sharing / pair.items:.1%})" if pair.items else ""
    found = f"{pair.name}: {pair.sharing:,} of {pair.items:,} items{share} share runs of {ngram} words with "
    lines = [f"{found}{pair.other}; {pair.same_id:,} have an id that stands there, too"]
    for item in pair.worst:
        where = (
            f"{visible(item.id)} ({item.shared} of {item.runs} runs; {pair.other} {visible(item.other_id)})"
        )
        lines.append(f"    {where}: {visible(item.text)}")
    return "\n".join(lines)
