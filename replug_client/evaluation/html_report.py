"""`replug evaluate report`: what several evaluations of one run found, as one page that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from replug_client import __version__
from replug_client.evaluation.html_values import values
from replug_client.evaluation.results import Difference, EvaluationResult, Metric, ResultTable, Row
from replug_client.evaluation.run_summary import RunSummary
from replug_client.pages.document import asset, document
from replug_client.pages.dot_plots import Dot, dot_plot
from replug_client.pages.markup import Markup, join, tag

_QUESTIONS = {
    "lm": "Does it help the language model?",
    "retrieval": "Does it retrieve better?",
    "qa": "Does it answer better?",
}
# Plots of each of many metrics would say the same again and again: the table has them all.
_MOST_PLOTS = 4


def report_page(results: Mapping[str, EvaluationResult], run: RunSummary | None = None) -> str:
    """The whole page: verdicts, then each evaluation's plots and tables, then what was asked and read.

    Args:
        results: The file that it was read from, to what it says; in the order to be shown.
        run: The training run that is evaluated, to be shown with them.

    Raises:
        ValueError: no results.
    """
    if not results:
        raise ValueError("no evaluation to report")
    numbered = list(enumerate(results.items(), start=1))
    sections = [_section(f"evaluation-{number}", file, result) for number, (file, result) in numbered]
    links = [
        tag("a", _name(result, file), href=f"#evaluation-{number}") for number, (file, result) in numbered
    ]
    links += [tag("a", "Training", href="#training")] if run is not None else []
    links.append(tag("a", "Options and inputs", href="#provenance"))
    title = "Evaluation" if run is None else f"Evaluation of {run.name}"
    body = tag(
        "main",
        tag(
            "div",
            tag("h1", title),
            tag("button", "Dark", type="button", data_theme_switch=""),
            class_="top",
        ),
        tag("div", *(_verdict(file, result) for file, result in results.items()), class_="verdicts"),
        tag("nav", *links, aria_label="Sections"),
        *sections,
        *([_run(run, results)] if run is not None else []),
        _provenance(results),
        id="main",
        tabindex=-1,
    )
    scripts = [asset("theme.js"), asset("sort_tables.js")]
    skip = tag("a", "Skip to the verdicts", href="#main", class_="skip")
    return document(title, [skip, body], styles=[asset("evaluation.css")], scripts=scripts)


def _name(result: EvaluationResult, file: str) -> str:
    return f"{_QUESTIONS.get(result.kind, result.kind)} ({Path(file).name})"


def _verdict(file: str, result: EvaluationResult) -> Markup:
    main = main_difference(result)
    tone = None if main is None else _tone(main[1])
    parts = [tag("span", _QUESTIONS.get(result.kind, result.kind))]
    parts.append(tag("p", result.verdict or "No verdict: see the tables."))
    if main is not None:
        row, difference = main
        metric = result.tables[0].metrics[0]
        said = (
            f"{row.label}, {metric.label}: {_signed(difference, metric)} (positive is better), n = {row.n:,}"
        )
        parts.append(tag("span", said))
    return tag("div", *parts, tag("br"), tag("span", Path(file).name), class_=f"verdict {tone or ''}".strip())


def main_difference(result: EvaluationResult) -> tuple[Row, Difference] | None:
    """The first table's emphasised row (the tuned retriever) and how its main metric differs from the baseline's."""
    for table in result.tables:
        for row in table.rows:
            difference = row.differences.get(table.metrics[0].name) if table.metrics else None
            if row.emphasis and difference is not None:
                return row, difference
        break
    return None


def _section(name: str, file: str, result: EvaluationResult) -> Markup:
    parts = [tag("h2", _QUESTIONS.get(result.kind, result.kind))]
    parts.append(_left_out(result.left_out))
    parts += [_table(table) for table in result.tables]
    if result.details:
        parts.append(
            tag("details", tag("summary", "Details: errors, examples, timings"), values(result.details))
        )
    return tag("section", *parts, id=name, aria_label=_name(result, file))


def _left_out(left_out: Mapping[str, int]) -> Markup:
    if not any(left_out.values()):
        return tag("p", "Nothing was left out.")
    said = "; ".join(f"{count:,} {reason}" for reason, count in left_out.items() if count)
    return tag("div", tag("b", "Left out: "), said, class_="left-out")


def _table(table: ResultTable) -> Markup:
    plots = [figure for metric in table.metrics[:_MOST_PLOTS] if (figure := _difference_plot(table, metric))]
    plots += [figure for metric in table.metrics[:_MOST_PLOTS] if (figure := _value_plot(table, metric))]
    more = len(table.metrics) - _MOST_PLOTS
    notes = [
        *table.notes,
        *([f"Plots show the first {_MOST_PLOTS} of {len(table.metrics)} figures."] if more > 0 else []),
    ]
    return join(
        [
            tag("h3", table.title),
            tag("div", *plots, class_="plots") if plots else "",
            _rows(table),
            tag("ul", *(tag("li", note) for note in notes), class_="notes") if notes else "",
        ]
    )


def _difference_plot(table: ResultTable, metric: Metric) -> Markup:
    dots = [
        _difference_dot(row, row.differences[metric.name], metric)
        for row in table.rows
        if metric.name in row.differences
    ]
    base = _baseline_label(table)
    first = next((row.differences[metric.name] for row in table.rows if metric.name in row.differences), None)
    resampled = "" if first is None else f"; {first.confidence:.0%} intervals over {first.units}"
    note = f"right of 0 is better than {base}{resampled}"
    return dot_plot(f"{metric.label}: better by", note, dots, reference=0.0)


def _difference_dot(row: Row, difference: Difference, metric: Metric) -> Dot:
    return Dot(
        label=row.label,
        note=f"n = {row.n:,}",
        value=difference.mean,
        said=_signed(difference, metric),
        low=difference.low,
        high=difference.high,
        emphasis=row.emphasis,
        tone=_tone(difference),
    )


def _value_plot(table: ResultTable, metric: Metric) -> Markup:
    dots = [
        Dot(
            label=row.label,
            note=f"n = {row.n:,}",
            value=row.values[metric.name],
            said=_figure(row.values[metric.name], metric),
            emphasis=row.emphasis,
        )
        for row in table.rows
        if metric.name in row.values
    ]
    base = next((row.values.get(metric.name) for row in table.rows if row.name == table.baseline), None)
    way = "lower is better" if metric.lower_is_better else "higher is better"
    note = way if base is None else f"{way}; the dashed line is {_baseline_label(table)}"
    return dot_plot(metric.label, note, dots, reference=base)


def _baseline_label(table: ResultTable) -> str:
    return next(
        (row.label for row in table.rows if row.name == table.baseline), table.baseline or "the baseline"
    )


def _rows(table: ResultTable) -> Markup:
    heads = [_heading("condition"), _heading("n")]
    for metric in table.metrics:
        heads.append(_heading(metric.label))
        if any(metric.name in row.differences for row in table.rows):
            heads.append(_heading(f"better than {_baseline_label(table)} by"))
    lines = []
    for row in table.rows:
        cells = [tag("td", f"{row.n:,}", data_value=row.n)]
        for metric in table.metrics:
            cells.append(_cell(row.values.get(metric.name), metric))
            if any(metric.name in other.differences for other in table.rows):
                cells.append(_difference_cell(row.differences.get(metric.name), metric))
        head = tag("th", row.label, scope="row")
        lines.append(tag("tr", head, *cells, class_="strong" if row.emphasis else None))
    body = tag(
        "table",
        tag("caption", table.title, class_="hidden"),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *lines),
        class_="sortable",
    )
    return tag("div", body, class_="scroll", tabindex=0, role="region", aria_label=table.title)


def _heading(text: str) -> Markup:
    return tag("th", tag("button", text, type="button"), scope="col")


def _cell(value: float | None, metric: Metric) -> Markup:
    if value is None:
        return tag("td", "")
    return tag("td", _figure(value, metric), data_value=repr(float(value)))


def _difference_cell(difference: Difference | None, metric: Metric) -> Markup:
    if difference is None:
        return tag("td", "")
    return tag(
        "td", _signed(difference, metric), data_value=repr(float(difference.mean)), class_=_tone(difference)
    )


def _tone(difference: Difference) -> str | None:
    """``good`` or ``bad`` where the interval says so."""
    if not difference.excludes_zero:
        return None
    return "good" if difference.mean > 0 else "bad"


def _figure(value: float, metric: Metric) -> str:
    return f"{value:.{metric.digits}f}".replace("-", "\u2212")


def _signed(difference: Difference, metric: Metric) -> str:
    """With the metric's decimals: ``+0.013 [+0.008, +0.018]``."""
    digits = metric.digits
    said = f"{difference.mean:+z.{digits}f}"
    if difference.low is None or difference.high is None:
        return f"{said} [no interval]".replace("-", "\u2212")
    return f"{said} [{difference.low:+z.{digits}f}, {difference.high:+z.{digits}f}]".replace("-", "\u2212")


def _run(run: RunSummary, results: Mapping[str, EvaluationResult]) -> Markup:
    others = [
        Path(file).name
        for file, result in results.items()
        if run.corpus is not None and result.inputs.get("corpus", run.corpus) != run.corpus
    ]
    parts = [tag("h2", "The training run")]
    if others:
        said = f"Not over the corpus that the run was trained on: {', '.join(others)}."
        parts.append(tag("div", said, class_="left-out"))
    parts += [tag("div", alarm, class_="left-out") for alarm in run.alarms]
    parts.append(values(run.facts))
    parts.append(tag("div", *run.charts(), class_="grid"))
    return tag("section", *parts, id="training")


def _provenance(results: Mapping[str, EvaluationResult]) -> Markup:
    parts: list[Markup] = []
    for file, result in results.items():
        inputs = [
            join([tag("dt", name), tag("dd", tag("code", digest))]) for name, digest in result.inputs.items()
        ]
        read: Sequence[Markup] = inputs or [tag("dt", "none recorded")]
        parts += [
            tag("h3", _name(result, file)),
            tag("h4", "Inputs"),
            tag("dl", *read, class_="values"),
            tag("details", tag("summary", "Options"), values(result.options)),
        ]
    closing = tag("footer", f"Made by replug {__version__}.")
    return tag("section", tag("h2", "Options and inputs"), *parts, closing, id="provenance")
