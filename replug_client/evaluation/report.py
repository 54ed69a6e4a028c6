"""The table of :class:`~replug_client.evaluation.likelihood.LikelihoodTable` as a person reads it."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from replug_client.evaluation.likelihood import (
    BASE,
    CEILING,
    NONE,
    RANDOM,
    TUNED,
    LikelihoodTable,
)
from replug_client.statistics import PairedDifference

_NAMES = {
    NONE: "no passage",
    RANDOM: "a random passage",
    BASE: "base retriever's first",
    TUNED: "tuned retriever's first",
    CEILING: "best of the base's K (ceiling)",
}


def render_likelihood(table: LikelihoodTable) -> RenderableType:
    """One row a condition: n, bits per byte, and the paired difference to the base with its interval."""
    lines = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    lines.add_column("passage before the query", no_wrap=True)
    lines.add_column("n", justify="right")
    lines.add_column("bits/byte", justify="right")
    paired = BASE in table.nll
    if paired:
        lines.add_column("base − this [95 % interval]", justify="right", no_wrap=True)
    for name in table.nll:
        cells = [_NAMES.get(name, name), f"{table.n:,}", f"{table.bits_per_byte(name):.4f}"]
        if paired:
            cells.append("" if name == BASE else format_difference(table.difference(BASE, name)))
        lines.add_row(*(Text(cell) for cell in cells), style="bold" if name == TUNED else "")
    return Group(lines, *(Text(line) for line in _closing(table)))


def format_difference(value: PairedDifference) -> str:
    """``+0.0069 [+0.0027, +0.0112]``; without an interval where there was nothing to resample."""
    if value.low is None or value.high is None:
        return f"{value.mean:+z.4f} [no interval: {value.clusters} document]"
    return f"{value.mean:+z.4f} [{value.low:+z.4f}, {value.high:+z.4f}]"


def _closing(table: LikelihoodTable) -> list[str]:
    source = f"{table.n:,} examples of {table.documents:,} documents"
    lines = [f"Lower is better. {source}; intervals by bootstrap over documents."]
    if {BASE, TUNED} <= set(table.nll):
        difference = table.difference(BASE, TUNED)
        verdict = (
            "no clear difference"
            if not difference.excludes_zero
            else ("tuned is better" if difference.mean > 0 else "tuned is worse")
        )
        lines.append(f"base − tuned: {format_difference(difference)} bits per byte: {verdict}.")
    share = table.share_closed()
    if share is not None:
        lines.append(f"Tuning covers {share:.0%} of the distance from the base to the ceiling.")
    lines += [f"Left out: {count:,} examples ({reason})." for reason, count in table.left_out.items()]
    return lines
