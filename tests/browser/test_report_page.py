"""The report of evaluations, in a real browser."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import expect

from replug_client.evaluation.html_report import report_page
from replug_client.evaluation.results import Difference, EvaluationResult, Metric, ResultTable, Row
from tests.browser.conftest import Open, Watched
from tests.browser.pages import CONTRAST, HOSTILE


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    metric = Metric("nDCG@10", "nDCG@10")
    rows = [
        Row("base", f"base {HOSTILE}", 300, {"nDCG@10": 0.64}),
        Row("bm25", "BM25", 299, {"nDCG@10": 0.61}, {"nDCG@10": Difference(-0.03, -0.05, -0.01, units="queries")}),
        Row("tuned", "tuned", 300, {"nDCG@10": 0.7}, {"nDCG@10": Difference(0.06, 0.02, 0.1, units="queries")}, True),
        Row("none", "nothing", 300, {}),
    ]  # fmt: skip
    table = ResultTable("main", HOSTILE, [metric], rows, "base", [HOSTILE])
    result = EvaluationResult(
        "retrieval", [table], {"k": HOSTILE}, {HOSTILE: "ab12"}, {HOSTILE: 3}, "Better.", {"worst": [HOSTILE]}
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report_page({"retrieval.json": result}), "utf-8")
    return path.as_uri()


def test_the_report_says_the_verdict_first_and_asks_nobody(
    open_page: Open, report: str, watched: Watched
) -> None:
    page = open_page(report)
    verdict = page.locator(".verdict")
    expect(verdict).to_have_class("verdict good")
    expect(verdict).to_contain_text("Better.")
    expect(verdict).to_contain_text("+0.0600 [+0.0200, +0.1000] (positive is better), n = 300")
    box, table = verdict.bounding_box(), page.locator("table").bounding_box()
    assert box is not None and table is not None and box["y"] < table["y"]
    expect(page.locator(".left-out")).to_contain_text("3 </script>")
    assert page.locator("main img, main script").count() == 0
    assert watched.requests == [report]


def test_the_report_s_dots_stand_where_the_figures_say(open_page: Open, report: str) -> None:
    page = open_page(report)
    plot = page.locator(".dot-plot").first
    rows = plot.locator(".row")
    expect(rows).to_have_count(3)  # BM25, tuned, and the scale
    scale: dict[str, float] = {}
    for name, number in (("bm25", 0), ("tuned", 1)):
        dot, line = rows.nth(number).locator("circle"), rows.nth(number).locator("line.interval")
        scale[name] = float((dot.get_attribute("cx") or "").rstrip("%"))
        ends = [float((line.get_attribute(end) or "").rstrip("%")) for end in ("x1", "x2")]
        assert ends[0] < scale[name] < ends[1]
    zero = float((rows.nth(0).locator("line.reference").get_attribute("x1") or "").rstrip("%"))
    # -0.03 and +0.06 of 0: twice as far to the right as to the left.
    assert (scale["tuned"] - zero) / (zero - scale["bm25"]) == pytest.approx(2.0, abs=0.01)


def test_a_heading_sorts_its_table_and_empty_cells_stand_last(open_page: Open, report: str) -> None:
    page = open_page(report)
    heading = page.locator("th", has_text="nDCG@10").first
    names = page.locator("tbody th")
    heading.locator("button").press("Enter")
    expect(heading).to_have_attribute("aria-sort", "ascending")
    assert [name[:4] for name in names.all_inner_texts()] == ["BM25", "base", "tune", "noth"]
    heading.locator("button").click()
    expect(heading).to_have_attribute("aria-sort", "descending")
    assert [name[:4] for name in names.all_inner_texts()] == ["tune", "base", "BM25", "noth"]


def test_the_report_on_a_phone(open_page: Open, report: str) -> None:
    page = open_page(report, width=390, height=844)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_that_reading_needs(open_page: Open, report: str, scheme: Any) -> None:
    page = open_page(report, color_scheme=scheme)
    assert page.evaluate(CONTRAST) == []
