"""The report's page: what a run did so far, from the trainer's log and the last validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from replug_client.pages.charts import Chart, chart, heat_table, number, shares
from replug_client.pages.markup import Markup, clip, join, tag
from replug_client.pages.style import CSS
from replug_client.training.alarms import Alarm
from replug_client.training.moves import BUCKETS
from replug_client.training.report import curves

# No script, no network, nothing from elsewhere: whatever a passage smuggled in could not do anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_QUERY, _PASSAGE, _CONTINUATION = 320, 480, 240


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and a passage whose rank moved; texts are anybody's.

    Attributes:
        query: The query's text.
        continuation: What follows it.
        passage: The passage's text.
        passage_id: Its id.
        base_rank: As it is said: ``7``, or ``beyond 100``.
        rank: Likewise, now.
        advantage: Its score less the mean of the example's pool.
    """

    query: str
    continuation: str
    passage: str
    passage_id: str
    base_rank: str
    rank: str
    advantage: float


@dataclass(frozen=True, slots=True)
class Validated:
    """What the last validation left behind.

    Attributes:
        step: Its optimiser step.
        best_ranks: ``(6, 6)`` counts, see :func:`~replug_client.training.moves.rank_table`.
        risen: The pairs that rose most.
        fallen: The pairs that fell most.
    """

    step: int
    best_ranks: Sequence[Sequence[int]]
    risen: Sequence[Pair]
    fallen: Sequence[Pair]


@dataclass(frozen=True, slots=True)
class Report:
    """All that the page says.

    Attributes:
        title: The run's name.
        status: ``running``, ``finished`` or ``stopped early``.
        step: Optimiser steps so far.
        max_steps: And in all.
        best_step: Step of the best validation after the first step; None before it.
        history: The trainer's log entries.
        alarms: What is wrong.
        seconds: By stage, of this process, together the time since it began; ``scoring`` is apart, for it
            runs beside them.
        scoring_seconds: During which at least one prompt was being scored.
        scores: Prompts by where their score came from: ``hits``, ``shared``, ``misses``.
        validated: Of the last validation; None before the first.
        settings: What the run was asked for, flat.
    """

    title: str
    status: str
    step: int
    max_steps: int
    best_step: int | None = None
    history: curves.History = ()
    alarms: Sequence[Alarm] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    scoring_seconds: float = 0.0
    scores: Mapping[str, int] = field(default_factory=dict)
    validated: Validated | None = None
    settings: Mapping[str, object] = field(default_factory=dict)


def render(report: Report) -> str:
    """The whole page, self-contained."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{report.title}: {report.status}, step {report.step}"),
        tag("style", Markup(CSS)),
    )
    sections = [_header(report), _alarms(report), *_curves(report), _validations(report)]
    sections += [_moves(report), _work(report), _settings(report), _footer()]
    return "<!doctype html>\n" + tag("html", head, tag("body", tag("main", *sections)), lang="en") + "\n"


def _header(report: Report) -> Markup:
    tiles = [
        _tile("status", report.status),
        _tile("optimiser step", f"{report.step:,} of {report.max_steps:,}"),
    ]
    now = {name: curves.points(report.history, f"eval_{name}") for name in _TILES}
    if now["bits_per_byte"]:
        tiles.append(_tile("held-out bits per byte", f"{now['bits_per_byte'][-1][1]:.4f}"))
    if now["base_minus_current"]:
        tiles.append(_gain(report.history))
    if now["mrr"]:
        tiles.append(_tile("MRR of the LM\u2019s best", number(now["mrr"][-1][1])))
    if report.best_step is not None:
        tiles.append(_tile("best so far at step", f"{report.best_step:,}"))
    return join([tag("h1", report.title), tag("div", *tiles, class_="tiles")])


_TILES = ("bits_per_byte", "base_minus_current", "mrr")


def _tile(name: str, value: str, tone: str | None = None) -> Markup:
    return tag("div", tag("span", name), tag("b", value, class_=tone), class_="tile")


def _gain(history: curves.History) -> Markup:
    found = curves.line(history, "eval_base_minus_current", "gain")
    step, value = found.points[-1]
    low, high = next(((low, high) for at, low, high in found.band if at == step), (0.0, 0.0))
    tone = "good" if low > 0 else "bad" if high < 0 else None
    return _tile("gain over the base", f"{value:+.4f}", tone)


def _alarms(report: Report) -> Markup:
    if not report.alarms:
        return tag("p", "No alarms.")
    said = []
    for alarm in report.alarms:
        when = f"step {alarm.first_step:,}"
        if alarm.last_step != alarm.first_step:
            when += f" to {alarm.last_step:,}"
        said.append(
            tag("div", tag("b", f"{alarm.name.replace('_', ' ')}, {when}"), alarm.message, class_="alarm")
        )
    return join([tag("h2", "Alarms"), *said])


def _curves(report: Report) -> list[Markup]:
    groups: list[tuple[str, str, list[Chart]]] = [
        (
            "Does it work?",
            "Held-out examples, over the whole index. The training loss does not tell.",
            curves.held_out(report.history),
        ),
        ("What it learns from", "The training candidates of each step.", curves.learning(report.history)),
        ("Is it steady?", "", curves.stability(report.history)),
    ]
    drawn = [item for _, _, charts in groups for item in charts]
    groups.append(("Other figures of the log", "", curves.others(report.history, drawn)))
    sections = []
    for title, note, charts in groups:
        figures = [figure for item in charts if (figure := chart(item, report.max_steps))]
        if figures:
            sections.append(join([tag("h2", title), tag("p", note), tag("div", *figures, class_="grid")]))
    return sections


_COLUMNS = {
    "recall@10": "recall_at_10",
    "MRR": "mrr",
    "expected score": "expected_score",
    "KL": "kl",
    "changed": "changed",
    "churn": "churn",
}


def _validations(report: Report) -> Markup:
    entries = {int(entry["step"]): entry for entry in report.history if "eval_bits_per_byte" in entry}
    if not entries:
        return Markup("")
    head = tag(
        "tr",
        *(
            tag("th", name, scope="col")
            for name in ("step", "bits/byte", "base \u2212 now [95 %]", *_COLUMNS)
        ),
    )
    lines = []
    for step, entry in entries.items():
        cells = [f"{entry['eval_bits_per_byte']:.4f}", _interval(entry)]
        cells += [
            number(entry[f"eval_{name}"]) if f"eval_{name}" in entry else "" for name in _COLUMNS.values()
        ]
        kept = "kept" if step == report.best_step else None
        row = tag(
            "tr", tag("th", f"{step:,}", scope="row"), *(tag("td", cell) for cell in cells), class_=kept
        )
        lines.append(row)
    table = tag("table", tag("thead", head), tag("tbody", *lines))
    note = "The best one after the first step is marked; the base itself is step 0."
    return join([tag("h2", "Validations"), tag("p", note), tag("div", table, class_="card scroll")])


def _interval(entry: Mapping[str, float]) -> str:
    name = "eval_base_minus_current"
    if name not in entry:
        return ""
    low, high = entry.get(f"{name}_low"), entry.get(f"{name}_high")
    ends = "" if low is None or high is None else f" [{low:+.4f}, {high:+.4f}]"
    return f"{entry[name]:+.4f}{ends}"


def _moves(report: Report) -> Markup:
    found = report.validated
    if found is None:
        return Markup("")
    starts = [1, *(end + 1 for end in BUCKETS)]
    labels = [str(a) if a == b else f"{a}\u2013{b}" for a, b in zip(starts, BUCKETS, strict=False)]
    labels.append(f"> {BUCKETS[-1]}")
    table = heat_table(labels, found.best_ranks, "base \u2193 now \u2192")
    parts = [
        tag("h2", "Rank moves"),
        tag(
            "p",
            f"Of the LM\u2019s own best passage of each held-out example, from its rank with the base to that at step "
            f"{found.step:,}. Below the diagonal it rose.",
        ),
        tag("div", table, class_="card scroll"),
    ]
    for title, pairs in (("Rose most", found.risen), ("Fell most", found.fallen)):
        if pairs:
            parts += [tag("h2", title), tag("div", *map(_pair, pairs), class_="pairs")]
    return join(parts)


def _pair(pair: Pair) -> Markup:
    likes = pair.advantage > 0
    said = f"score {pair.advantage:+.3f} against the mean: the LM {'likes' if likes else 'does not like'} it"
    head = tag(
        "header",
        tag("b", f"{pair.base_rank} \u2192 {pair.rank}"),
        tag("span", said, class_="likes" if likes else "dislikes"),
    )
    texts = [
        ("query (its end)", clip(pair.query, _QUERY, end=True)),
        ("continuation", clip(pair.continuation, _CONTINUATION)),
        (f"passage {clip(pair.passage_id, 80)}", clip(pair.passage, _PASSAGE)),
    ]
    rows = [part for name, text in texts for part in (tag("dt", name), tag("dd", text, dir="auto"))]
    return tag("article", head, tag("dl", *rows), class_="pair")


def _work(report: Report) -> Markup:
    parts = [tag("h2", "Where the time goes")]
    spent = [(name, seconds, duration(seconds)) for name, seconds in report.seconds.items() if seconds > 0]
    if spent:
        note = f"This process; beside it, prompts were being scored for {duration(report.scoring_seconds)}."
        parts.append(tag("div", tag("p", note), shares(spent, "seconds by stage"), class_="card"))
    total = sum(report.scores.values())
    if total:
        hits = total - report.scores.get("misses", 0)
        counts = [
            (_SOURCES[name], float(count), f"{count:,}") for name, count in report.scores.items() if count
        ]
        note = f"{hits:,} of {total:,} scores asked for ({hits / total:.0%}) needed no supervisor."
        parts += [
            tag("h2", "Where the scores came from"),
            tag("div", tag("p", note), shares(counts, "scores by source"), class_="card"),
        ]
    return join(parts) if len(parts) > 1 else Markup("")


_SOURCES = {"hits": "cache", "shared": "asked for already", "misses": "supervisor"}


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 h 14 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _settings(report: Report) -> Markup:
    if not report.settings:
        return Markup("")
    rows = [
        tag("tr", tag("th", name, scope="row"), tag("td", "" if value is None else value))
        for name, value in report.settings.items()
    ]
    return tag(
        "details",
        tag("summary", "What the run was asked for"),
        tag("div", tag("table", *rows, class_="settings"), class_="card scroll"),
    )


def _footer() -> Markup:
    text = (
        "Written as the run goes: load it again for what is new. The figures are in TensorBoard\u2019s files too and, "
        "once the run is complete, in run.json. `replug compare --run FOLDER` shows what the kept retriever finds."
    )
    return tag("footer", text)
