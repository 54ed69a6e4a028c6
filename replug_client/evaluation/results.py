"""What an evaluation found, in one form for the terminal, JSON, Markdown and the HTML report.

Every row of a table says its ``n``; every difference says to which row, and its interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from replug_client import __version__
from replug_client.artefacts import read_json, write_json
from replug_client.errors import ArtefactError
from replug_client.statistics import PairedDifference

Kind = Literal["lm", "retrieval", "qa"]
_LEAST_LABEL = 12
_MEND = "Make it again with `replug evaluate lm`, `retrieval` or `qa` and --output."


@dataclass(frozen=True, slots=True)
class Metric:
    """A column.

    Attributes:
        name: The key in a row's ``values``, for example ``bits_per_byte`` or ``nDCG@10``.
        label: What a heading says; the unit in it where there is one.
        lower_is_better: Which way is better.
        digits: Decimals shown.
    """

    name: str
    label: str
    lower_is_better: bool = False
    digits: int = 4


@dataclass(frozen=True, slots=True)
class Difference:
    """The paired difference between a row and the table's baseline, oriented so that positive is better.

    Attributes:
        mean: The difference as it is.
        low: Lower end of its interval; None where nothing could be resampled.
        high: Upper end.
        confidence: For example 0.95.
        units: What was resampled: ``documents``, ``examples``, ``queries``.
    """

    mean: float
    low: float | None
    high: float | None
    confidence: float = 0.95
    units: str = "examples"

    @classmethod
    def of(cls, paired: PairedDifference, units: str) -> Difference:
        """Of a bootstrap whose positive side is the better one."""
        return cls(paired.mean, paired.low, paired.high, paired.confidence, units)

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval; False where there is none."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def __str__(self) -> str:
        """``+0.0069 [+0.0027, +0.0112]``."""
        if self.low is None or self.high is None:
            return f"{self.mean:+z.4f} [no interval]"
        return f"{self.mean:+z.4f} [{self.low:+z.4f}, {self.high:+z.4f}]"


@dataclass(frozen=True, slots=True)
class Row:
    """One condition: its figures, and how it differs from the baseline.

    Attributes:
        name: Stable, for programs: ``base``, ``tuned.ensemble-4``.
        label: For people.
        n: What the figures are over: examples, queries, questions.
        values: Metric name to value.
        differences: Metric name to the difference to the baseline; the baseline itself has none.
        emphasis: Shown bold (the tuned retriever).
    """

    name: str
    label: str
    n: int
    values: Mapping[str, float]
    differences: Mapping[str, Difference] = field(default_factory=dict)
    emphasis: bool = False


@dataclass(frozen=True, slots=True)
class ResultTable:
    """Rows that compare.

    Attributes:
        name: Stable, for programs.
        title: For people.
        metrics: The columns, in order; the first is the main one.
        rows: The conditions, in order.
        baseline: Name of the row that differences are to; None: no differences.
        notes: Lines below it: what was left out and why, how to read it.
    """

    name: str
    title: str
    metrics: Sequence[Metric]
    rows: Sequence[Row]
    baseline: str | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """All that one `replug evaluate ...` found.

    Attributes:
        kind: Which command.
        tables: Its tables, the main one first.
        options: What it was asked.
        inputs: What it read: file to SHA-256, model to fingerprint.
        left_out: Reason to number of items that stand in no row.
        verdict: The answer in one sentence: "did LSR help?".
        details: Anything further that JSON can hold: error analyses, worst examples, timings.
    """

    kind: Kind
    tables: Sequence[ResultTable]
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    verdict: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The form of the file; :meth:`from_json` reads it."""
        return {"replug_version": __version__, **asdict(self)}

    def write(self, path: Path) -> None:
        """To a JSON file, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> EvaluationResult:
        """From a file that :meth:`write` made.

        Raises:
            ArtefactError: no such file, or not in this form.
        """
        value = read_json(path, mend=_MEND)
        try:
            return cls.from_json(value)
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(f"{path}: not the result of an evaluation ({error!r}). {_MEND}") from error

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EvaluationResult:
        """From what :meth:`to_json` gives.

        Raises:
            KeyError, TypeError, AttributeError: it is something else.
        """
        tables = [
            ResultTable(
                **{
                    **table,
                    "metrics": [Metric(**metric) for metric in table["metrics"]],
                    "rows": [_row(row) for row in table["rows"]],
                }
            )
            for table in value["tables"]
        ]
        known = ("kind", "options", "inputs", "left_out", "verdict", "details")
        return cls(tables=tables, **{name: value[name] for name in known if name in value})

    def render(self) -> RenderableType:
        """For the terminal; nothing in it may be markup or a control sequence of someone else's."""
        parts: list[RenderableType] = []
        for table in self.tables:
            parts.extend((Text(shown(table.title), style="bold"), _Fitted(table)))
            parts.extend(Text(shown(note)) for note in table.notes)
            parts.append(Text(""))
        if self.left_out:
            parts.append(Text(f"left out: {_counts(self.left_out)}"))
        if self.verdict:
            parts.append(Text(shown(self.verdict), style="bold"))
        return Group(*parts)

    def to_markdown(self) -> str:
        """For a paper's draft or an issue: one pipe table a table."""
        blocks = [_markdown_table(table) for table in self.tables]
        if self.left_out:
            blocks.append(f"Left out: {_counts(self.left_out)}.")
        if self.verdict:
            blocks.append(f"**{_pipe_safe(self.verdict)}**")
        return "\n\n".join(blocks) + "\n"


def shown(text: str) -> str:
    """``text`` on one line, without control characters."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\ufffd"
        for character in text
    )


def cells(table: ResultTable) -> tuple[list[str], list[list[str]]]:
    """Headings and rows as text: condition, n, then each metric and, where there is a baseline, its difference."""
    heads = ["condition", "n"]
    for metric in table.metrics:
        heads.append(metric.label)
        if _compares(table, metric):
            heads.append(f"better than {table.baseline} by [95 %]")
    return heads, [_cells(table, row) for row in table.rows]


def _compares(table: ResultTable, metric: Metric) -> bool:
    return any(metric.name in row.differences for row in table.rows)


def _cells(table: ResultTable, row: Row) -> list[str]:
    found = [row.label, f"{row.n:,}"]
    for metric in table.metrics:
        value = row.values.get(metric.name)
        found.append("" if value is None else f"{value:.{metric.digits}f}")
        if _compares(table, metric):
            difference = row.differences.get(metric.name)
            found.append("" if difference is None else str(difference))
    return found


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A table in as many pieces as the terminal's width asks for, so that no figure is cut off."""

    table: ResultTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Rich's protocol: the metrics in groups, each as many as fit beside the labels, at least one."""

        def width(table: Table) -> Measurement:
            return Measurement.get(console, options.update(width=10_000), table)

        groups: list[list[Metric]] = [[]]
        for metric in self.table.metrics:
            tried = replace(self.table, metrics=[*groups[-1], metric])
            if groups[-1] and width(_terminal_table(tried, narrow=True)).minimum > options.max_width:
                groups.append([])
            groups[-1].append(metric)
        for metrics in groups:
            piece = replace(self.table, metrics=metrics)
            whole = _terminal_table(piece, narrow=False)
            fits = width(whole).maximum <= options.max_width
            yield whole if fits else _terminal_table(piece, narrow=True)


def _terminal_table(table: ResultTable, *, narrow: bool) -> Table:
    heads, rows = cells(table)
    lines = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for place, head in enumerate(heads):
        if place == 0:
            lines.add_column(Text(shown(head)), min_width=_LEAST_LABEL, overflow="fold")
            continue
        # Figures and words stay whole: where it is narrow, headings and labels take several lines.
        least = max([*(len(values[place]) for values in rows), *map(len, shown(head).split())], default=1)
        lines.add_column(Text(shown(head)), justify="right", width=least if narrow else None)
    for row, values in zip(table.rows, rows, strict=True):
        lines.add_row(*(Text(shown(value)) for value in values), style="bold" if row.emphasis else "")
    return lines


def _markdown_table(table: ResultTable) -> str:
    heads, rows = cells(table)
    lines = [f"### {_pipe_safe(table.title)}", ""]
    lines.append("| " + " | ".join(map(_pipe_safe, heads)) + " |")
    lines.append("|---" + "|---:" * (len(heads) - 1) + "|")
    for row, values in zip(table.rows, rows, strict=True):
        texts = [_pipe_safe(value) for value in values]
        lines.append(
            "| " + " | ".join(f"**{text}**" if row.emphasis and text else text for text in texts) + " |"
        )
    if table.notes:
        lines.extend(["", *(_pipe_safe(note) for note in table.notes)])
    return "\n".join(lines)


def _pipe_safe(text: str) -> str:
    return shown(text).replace("|", "\\|")


def _counts(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {shown(reason)}" for reason, count in left_out.items())


def _row(value: Mapping[str, Any]) -> Row:
    differences = {name: Difference(**item) for name, item in value["differences"].items()}
    return Row(**{**value, "differences": differences})
