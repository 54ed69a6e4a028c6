"""The report: nothing in it comes from elsewhere, hostile text stays text, and the figures are the run's."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from replug_client.pages.charts import (
    Chart,
    Line,
    chart,
    number,
    shares,
    thinned,
    tick_labels,
    ticks,
)
from replug_client.pages.markup import Markup, clip, tag
from replug_client.training.alarms import Alarm
from replug_client.training.report.curves import others, points
from replug_client.training.report.page import Pair, Report, Validated, duration, render
from replug_client.training.report.writer import ReportSources, ReportWriter, best_step
from replug_client.training.stream import StreamTimings

HOSTILE = "</dd></main><script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e \x00\x1b \ud800 &amp;"
SHOWN = (
    "</dd></main><script>alert(1)</script>\"'><img src=x onerror=alert(1)>\ufffd \ufffd\ufffd \ufffd &amp;"
)
HISTORY: list[dict[str, float]] = [
    {"step": 0, "eval_bits_per_byte": 1.25, "eval_base_minus_current": 0.0, "eval_selection": 1.25},
    {"step": 5, "loss": 0.5, "grad_norm": math.nan, "brand_new": 7.0, "learning_rate": 1e-4},
    {"step": 10, "loss": 0.25, "grad_norm": 2.0, "brand_new": 8.0, "learning_rate": 0.0},
    {
        "step": 10,
        "eval_bits_per_byte": 1.2,
        "eval_base_minus_current": 0.05,
        "eval_base_minus_current_low": 0.01,
        "eval_base_minus_current_high": 0.09,
        "eval_mrr": 0.5,
        "eval_selection": 1.2,
        "eval_runtime": 3.5,
    },
]


def everything_hostile() -> Report:
    pair = Pair(HOSTILE, HOSTILE, HOSTILE, HOSTILE, "beyond 100", "2", 0.5)
    return Report(
        title=HOSTILE,
        status="running",
        step=10,
        max_steps=20,
        best_step=10,
        history=[*HISTORY, {"step": 10, HOSTILE: 1.0}],
        alarms=[Alarm(HOSTILE, 3, 4, HOSTILE)],
        seconds={HOSTILE: 3.0, "other": 1.0},
        scores={"hits": 3, "shared": 0, "misses": 1},
        validated=Validated(10, [[1] * 6] * 6, [pair], [pair]),
        settings={HOSTILE: HOSTILE},
    )


class Page(HTMLParser):
    """Which elements a browser would see, with their attributes; elements must close as they opened."""

    VOID = frozenset({"meta"})

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in self.VOID:
            self._open.append(name)

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))

    def handle_endtag(self, name: str) -> None:
        assert self._open.pop() == name

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, name: str, class_: str | None = None) -> int:
        return sum(
            name == found and (class_ is None or class_ in (attributes.get("class") or "").split())
            for found, attributes in self.elements
        )


def test_hostile_text_is_shown_and_makes_nothing() -> None:
    page = Page(render(everything_hostile()))
    names = {name for name, _ in page.elements}
    assert not names & {"script", "img", "iframe", "object", "embed", "link", "base", "form", "a"}
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    for kind in ("h1", "dd", "td"):
        assert kind in names
    assert page.text.count(SHOWN) >= 8, "title, alarm, setting and all of the pairs' texts"
    assert render(everything_hostile()).encode("utf-8")


def test_nothing_comes_from_elsewhere() -> None:
    text = render(everything_hostile())
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    page = Page(text)
    attributes = [pair for _, given in page.elements for pair in given.items()]
    assert not {"src", "href", "srcset", "action", "data"} & {key for key, _ in attributes}
    policy = [given["content"] for name, given in page.elements if given.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert "prefers-color-scheme: dark" in style
    assert any(given.get("name") == "viewport" for _, given in page.elements)


def test_the_page_says_what_the_run_gave() -> None:
    page = Page(render(everything_hostile()))
    text = " ".join(page.text)
    for said in ("10 of 20", "1.2000", "+0.0500 [+0.0100, +0.0900]", "beyond 100 \u2192 2", "step 3 to 4"):
        assert said in text
    assert "3 of 4 scores asked for (75%) needed no supervisor" in text
    assert page.count("tr", "kept") == 1
    assert page.count("polygon", "band") == 0, "one validation has an interval: no band yet"
    assert "brand new" in text, "a figure that no chart was made for is drawn by itself"


def test_a_run_that_has_just_begun_has_a_page() -> None:
    text = " ".join(Page(render(Report("run", "running", 0, 8))).text)
    assert "No alarms." in text and "0 of 8" in text


def test_only_markup_is_not_escaped() -> None:
    assert tag("p", "a < b", Markup("<b>c</b>"), class_='x"y', aria_label=None) == (
        '<p class="x&quot;y">a &lt; b<b>c</b></p>'
    )
    assert tag("meta", name="viewport") == '<meta name="viewport"/>'


@pytest.mark.parametrize(
    ("text", "end", "clipped"),
    [
        ("abcdef", False, "abc\u2026"),
        ("abcdef", True, "\u2026def"),
        ("\n  a\n", False, "  a"),
        ("abc", False, "abc"),
    ],
)
def test_clip(text: str, end: bool, clipped: str) -> None:
    assert clip(text, 3, end=end) == clipped


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (1.071, 1.079, [1.072, 1.074, 1.076, 1.078]),
        (-0.3, 0.3, [-0.2, 0.0, 0.2]),
        (3.0, 3.0, [3.0]),
        (0.0, 8.0, [0.0, 2.0, 4.0, 6.0, 8.0]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: Sequence[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1.0725, 1.075, 1.0775], ["1.0725", "1.0750", "1.0775"]),
        ([0.0, 5e-5, 1e-4], ["0.00000", "0.00005", "0.00010"]),
        ([0.0, 5e-6], ["0", "5e-6"]),
        ([0.0, 2000.0], ["0", "2,000"]),
    ],
)
def test_labels_tell_ticks_apart(values: list[float], labels: list[str]) -> None:
    assert tick_labels(values) == labels


def test_long_curves_are_thinned_but_keep_their_ends() -> None:
    curve = [(float(step), 1.0) for step in range(1001)]
    kept = thinned(curve, 100)
    assert len(kept) <= 101 and (kept[0], kept[-1]) == (curve[0], curve[-1])
    assert thinned(curve[:100], 100) == curve[:100]


def places(drawing: str, element: str) -> list[list[tuple[float, float]]]:
    """Points of each polyline or polygon."""
    found = re.findall(rf'<{element}[^>]* points="([^"]*)"', drawing)
    return [[(float(x), float(y)) for x, y in (p.split(",") for p in points.split())] for points in found]


def test_a_curve_is_where_its_values_are() -> None:
    data = Line("x", [(0.0, 1.0), (5.0, 3.0), (10.0, 2.0)], [(0.0, 0.5, 1.5), (10.0, 1.0, 4.0)])
    drawing = chart(Chart("t", "n", [data], ("base", 2.0)), 10.0)
    ((first, top, last),) = places(drawing, "polyline")
    assert first[0] < top[0] < last[0] and top[0] - first[0] == pytest.approx(last[0] - top[0], abs=0.11)
    assert top[1] < last[1] < first[1], "y grows downwards"
    assert last[1] - top[1] == pytest.approx(first[1] - last[1], abs=0.21)
    ((upper, _, end, start),) = places(drawing, "polygon")
    assert upper[1] < first[1] < start[1] and end[1] > last[1]
    reference = re.search(r'class="reference" x1="\d+" x2="\d+" y1="([\d.]+)"', drawing)
    assert reference is not None and float(reference[1]) == pytest.approx(last[1])
    assert "step 10: x 2 [1, 4]" in drawing
    assert chart(Chart("t", "n", [Line("x", [])]), 10.0) == ""


def test_one_value_and_equal_values_have_a_place() -> None:
    for curve in ([(0.0, 0.0)], [(0.0, 2.0), (1.0, 2.0)]):
        drawing = chart(Chart("t", "n", [Line("x", curve)]), 0.0)
        assert all(math.isfinite(value) for line in places(drawing, "polyline") for p in line for value in p)


def test_shares_fill_the_bar() -> None:
    drawing = shares([("a", 1.0, "1 s"), ("b", 3.0, "3 s")], "time")
    assert re.findall(r' x="([\d.]+)"[^>]* width="([\d.]+)"', drawing) == [
        ("0.000", "25.000"),
        ("25.000", "75.000"),
    ]
    assert shares([("a", 0.0, "0 s")], "time") == ""


def test_figures_without_a_chart_are_found_and_nan_is_left_out() -> None:
    assert points(HISTORY, "grad_norm") == [(10.0, 2.0)]
    drawn = [Chart("t", "n", [Line("x", points(HISTORY, name))]) for name in ("loss", "learning_rate")]
    assert [item.title for item in others(HISTORY, drawn)] == [
        "bits per byte",
        "base minus current",
        "grad norm",
        "brand new",
        "mrr",
    ]


@pytest.mark.parametrize(
    ("value", "said"), [(0.44, "0.4 s"), (12.4, "12 s"), (185.0, "3 min 5 s"), (8040.0, "2 h 14 min")]
)
def test_durations(value: float, said: str) -> None:
    assert duration(value) == said


@pytest.mark.parametrize(
    ("value", "said"), [(1.07231, "1.072"), (1e-5, "1e-5"), (0.25, "0.25"), (12345.6, "1.235e4")]
)
def test_numbers(value: float, said: str) -> None:
    assert number(value) == said


def test_the_best_validation_is_after_the_first_step() -> None:
    assert best_step(HISTORY) == 10
    assert best_step(HISTORY[:3]) is None


class Trainer:
    """Calls the writer as the trainer does."""

    def __init__(self, folder: Path, evaluator: Any = None) -> None:
        sources = ReportSources(
            "run", StreamTimings(), lambda: {"hits": 1, "shared": 0, "misses": 1}, evaluator
        )
        self.writer = ReportWriter(folder, sources)
        self.arguments = TrainingArguments(output_dir=str(folder / "checkpoints"), use_cpu=True)
        self.state = TrainerState(global_step=4, max_steps=8)

    def event(self, name: str) -> None:
        getattr(self.writer, name)(self.arguments, self.state, TrainerControl())


def test_the_page_is_written_as_the_run_goes(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    path = tmp_path / "report.html"
    trainer.state.log_history = []
    trainer.event("on_train_begin")
    assert "4 of 8" in path.read_text()
    trainer.event("on_step_begin")
    trainer.event("on_step_end")
    trainer.state.log_history = HISTORY
    trainer.event("on_log")
    page = Page(path.read_text("utf-8"))
    assert "Training loss" in page.text and "running" in page.text
    trainer.event("on_train_end")
    assert "stopped early" in Page(path.read_text("utf-8")).text
    trainer.state.global_step = 8
    trainer.event("on_train_end")
    assert "finished" in Page(path.read_text("utf-8")).text
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"], "no temporary file is left"
    stages = trainer.writer.seconds()
    assert stages["steps"] > 0 and set(stages) >= {"waiting for scores", "retrieving", "validating"}
    assert all(seconds >= 0 for seconds in stages.values())


def test_one_process_writes(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    trainer.state.is_world_process_zero = False
    trainer.event("on_log")
    trainer.event("on_save")
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    trainer = Trainer(tmp_path / "file" / "folder")
    with caplog.at_level(logging.WARNING):
        trainer.event("on_log")
        trainer.event("on_log")
    assert len(caplog.records) == 1 and "report.html" in caplog.text
