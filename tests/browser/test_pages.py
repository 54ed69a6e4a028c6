"""The comparison's page, the served one and the report, in a real browser."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from playwright.sync_api import Locator, Page, expect

from replug_client.corpus.records import Passage
from replug_client.evaluation.appraisal import Appraiser
from replug_client.evaluation.comparison import Comparison, QueryComparison, Worth, agreement, compare_query
from replug_client.evaluation.comparison_page import comparison_page, search_page
from replug_client.evaluation.comparison_server import ComparisonServer, Searcher
from replug_client.evaluation.html_report import report_page
from replug_client.evaluation.results import Difference, EvaluationResult, Metric, ResultTable, Row
from replug_client.evaluation.retrieval import Opened, Retriever
from replug_client.evaluation.tuned_run import Query
from replug_client.retriever.encoder import encode_passages
from replug_client.retriever.index import ArrayIndex
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.training.toy import toy
from tests.browser.conftest import Open, Watched
from tests.retriever.tiny import store_of

HOSTILE = (
    "</script><script>alert('block')</script><img src=x onerror=alert('image')>"
    "<svg onload=alert('svg')> &lt;b&gt; <!-- ${alert('template')} \u202egnp.exe\u202c \x00 \x1b[31m"
    '"><a href="javascript:alert(1)">'
)
# What reaches the page of it: controls and turned directions as U+FFFD.
SHOWN = HOSTILE.translate({ord(c): "\ufffd" for c in "\u202e\u202c\x00\x1b"})
RAINBOW = "the rainbow has colours"


def passage(number: int) -> Passage:
    if number == 3:
        return Passage(f"p3 {HOSTILE}", HOSTILE, HOSTILE, {"file": HOSTILE})
    lines = "\n".join(f"line {line} of passage {number}: light and water" for line in range(30))
    return Passage(f"p{number}", lines, f"title {number}", {"file": f"f{number}.py"})


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of three queries. In the first, passage 1 falls, 2 rises, 3 (hostile) is new and 0 stays."""
    tenths = [0.9, 0.8, 0.7, 0.6]
    first = compare_query(
        f"light {HOSTILE}", ([0, 1, 2, 4], tenths), ([0, 2, 3, 1], tenths), 4, continuation="water"
    )
    gains = {0: -10.0, 1: -12.5, 2: -7.0, 3: -11.0, 4: -10.5}
    second = compare_query(RAINBOW, ([5, 6], [0.5, 0.4]), ([6, 5], [0.5, 0.4]), 2, document_id="doc7")
    shown = (
        scored(first, gains, -10.0),
        scored(second, {5: -3.0, 6: -2.0}, -4.0),
        compare_query("the sun", ([7], [0.5]), ([7], [0.5]), 1),
    )
    comparison = Comparison(
        f"base{HOSTILE}", "tuned", shown, {n: passage(n) for n in range(8)}, agreement(shown), True, "an LM"
    )
    path = tmp_path_factory.mktemp("page") / "out.html"
    path.write_text(comparison_page(comparison), "utf-8")
    return path.as_uri()


def scored(item: QueryComparison, log_likelihoods: dict[int, float], no_passage: float) -> QueryComparison:
    return replace(item, worth=Worth("continuation", no_passage, log_likelihoods, 3, 12))


def card(page: Page, number: int) -> Locator:
    return page.locator("article.query").nth(number)


def middle(head: Locator) -> float:
    box = head.bounding_box()
    assert box is not None
    return box["y"] + min(box["height"], 24) / 2


def test_moved_passages_are_joined_where_they_stand(open_page: Open, static: str) -> None:
    page = open_page(static)
    query = card(page, 0)
    expect(query.locator("path.join")).to_have_count(3)
    assert [line.get_attribute("class") for line in query.locator("path.join").all()] == [
        "join same",
        "join down",
        "join up",
    ]
    frame = query.locator("svg.joins").bounding_box()
    assert frame is not None and frame["width"] > 40
    down = query.locator("path.join.down").get_attribute("d") or ""
    start, end = down.removeprefix("M0,").split(" C")[0], down.split(",")[-1]
    heads = {side: query.locator(f".passage[data-side={side}] .head") for side in ("base", "tuned")}
    assert float(start) + frame["y"] == pytest.approx(middle(heads["base"].nth(1)), abs=1.5)
    assert float(end) + frame["y"] == pytest.approx(middle(heads["tuned"].nth(3)), abs=1.5)
    # Opening a passage moves those below it, and the lines with them.
    query.locator(".passage[data-side=base] .more").first.click()
    page.wait_for_function(
        "before => document.querySelector('path.join.down').getAttribute('d') !== before", arg=down
    )


def test_what_moved_what_is_new_and_what_it_is_worth_stand_in_words(open_page: Open, static: str) -> None:
    page = open_page(static)
    words = [text.strip() for text in card(page, 0).locator(".badge").all_inner_texts()]
    assert words == [
        "same place", "down 2 (now 4th)", "up 1 (now 2nd)", "LM’s best", "dropped (now beyond 4th)",
        "same place", "up 1 (was 3rd)", "LM’s best", "new (was beyond 4th)", "down 2 (was 2nd)",
    ]  # fmt: skip
    figures = card(page, 0).locator(".gain .figure").all_inner_texts()
    assert figures[:4] == ["LM +0.00", "LM −2.50", "LM +3.00", "LM −0.50"]
    assert "+1.00 nats" in card(page, 1).locator(".figures").inner_text()
    marks = card(page, 0).locator(".passage").first.locator("mark")
    assert {mark.get_attribute("class") for mark in marks.all()} == {"in-query", "in-continuation"}


def test_hostile_text_is_shown_and_does_nothing(open_page: Open, static: str, watched: Watched) -> None:
    page = open_page(static)
    texts = card(page, 0).locator(".passage.new")
    assert texts.locator(".text").text_content() == SHOWN
    assert (texts.locator(".id").text_content() or "").endswith(SHOWN)
    assert card(page, 0).locator(".asked").first.text_content() == f"light {SHOWN}"
    assert page.locator("main img, main a[href^=javascript], main svg[onload], article script").count() == 0
    # Were a script put into the page all the same, its policy would not let it run.
    blocked = page.evaluate(
        """() => new Promise((done) => {
          document.addEventListener("securitypolicyviolation", (event) => done(event.violatedDirective));
          const script = document.createElement("script");
          script.textContent = "alert(1)";
          document.body.append(script);
        })"""
    )
    assert blocked.startswith("script-src")
    assert all("Content Security Policy" in said for said in watched.complaints)
    watched.complaints.clear()


def test_the_static_page_asks_nobody(open_page: Open, static: str, watched: Watched) -> None:
    page = open_page(static)
    page.locator("#search").fill("light")
    page.wait_for_timeout(300)
    assert watched.requests == [static]


def test_search_filter_and_order(open_page: Open, static: str) -> None:
    page = open_page(static)
    said = page.locator("#said")
    expect(said).to_have_text("3 of 3 queries in view")
    page.locator("#search").fill("RAINBOW colours")
    expect(said).to_have_text("1 of 3 queries in view")
    expect(page.locator("article.query:visible h3")).to_have_text("Query 2 of 3")
    page.locator("#search").fill("passage 4:")  # in a passage that only the base found
    expect(page.locator("article.query:visible h3")).to_have_text("Query 1 of 3")
    page.locator("#search").fill("")
    page.locator("#which").select_option("new")
    expect(page.locator("article.query:visible h3")).to_have_text("Query 1 of 3")
    page.locator("#which").select_option("better")
    expect(page.locator("article.query:visible h3")).to_have_text("Query 2 of 3")
    page.locator("#which").select_option("all")
    page.locator("#order").select_option("gain")
    assert page.locator("article.query h3").all_inner_texts() == [
        f"Query {number} of 3" for number in (2, 1, 3)
    ]
    expect(page.locator("article.query").first.locator("path.join")).to_have_count(2)


def focused(page: Page, name: str) -> str | None:
    value: str | None = page.evaluate("name => document.activeElement.getAttribute(name)", name)
    return value


def test_all_of_it_by_keyboard(open_page: Open, static: str) -> None:
    page = open_page(static)
    page.keyboard.press("Tab")
    assert focused(page, "class") == "skip"
    page.keyboard.press("/")
    assert focused(page, "id") == "search"
    assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
    page.keyboard.type("jk/?")  # in a field these are letters
    assert page.locator("#search").input_value() == "jk/?"
    page.locator("#search").fill("")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert focused(page, "aria-label") == "Query 2 of 3"
    page.keyboard.press("k")
    assert focused(page, "aria-label") == "Query 1 of 3"
    for _ in range(3):  # the query, what follows it, and then the first passage of the first list
        page.keyboard.press("Tab")
    place = page.locator(":focus")
    expect(place).to_have_attribute("data-side", "base")
    page.keyboard.press("ArrowDown")
    expect(place.locator(".id")).to_have_text("p1")
    expect(page.locator("path.join.linked")).to_have_class("join down linked")
    page.keyboard.press("ArrowRight")  # the same passage, which is fourth there
    expect(place).to_have_attribute("data-side", "tuned")
    expect(place.locator(".rank")).to_have_text("4")
    page.keyboard.press("Enter")
    expect(place).to_have_class(re.compile(r"\bopen\b"))
    expect(place.locator(".more")).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("?")
    expect(page.locator("dialog#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog#keys")).to_be_hidden()


def test_on_a_phone_the_lists_stack_and_nothing_is_wider_than_the_screen(
    open_page: Open, static: str
) -> None:
    page = open_page(static, width=390, height=844, has_touch=True)
    query = card(page, 0)
    base, tuned = (query.locator(f".list.{side}").bounding_box() for side in ("base", "tuned"))
    assert base is not None and tuned is not None
    assert tuned["y"] >= base["y"] + base["height"]
    assert base["width"] > 300
    assert query.locator("svg.joins").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


BACKGROUND = "getComputedStyle(document.body).backgroundColor"
LIGHT, DARK = "rgb(246, 247, 249)", "rgb(18, 21, 27)"


@pytest.mark.parametrize(("system", "other"), [("light", DARK), ("dark", LIGHT)])
def test_dark_and_light_as_the_system_is_or_as_the_reader_says(
    open_page: Open, static: str, system: Any, other: str
) -> None:
    page = open_page(static, color_scheme=system)
    assert page.evaluate(BACKGROUND) == (DARK if system == "dark" else LIGHT)
    page.locator("[data-theme-switch]").click()
    assert page.evaluate(BACKGROUND) == other
    page.reload()
    assert page.evaluate(BACKGROUND) == other


# WCAG 2's ratio of each text to what lies behind it: 4.5 at least.
CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || node.closest("script, style, noscript, svg, dialog:not([open])")) continue;
    const both = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    const ratio = (both[0] + 0.05) / (both[1] + 0.05);
    if (ratio < 4.5) bad.push(`${node.tagName}.${node.className} ${ratio.toFixed(2)}`);
  }
  return [...new Set(bad)];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["static", "report"])
def test_every_text_has_the_contrast_that_reading_needs(
    open_page: Open, request: pytest.FixtureRequest, which: str, scheme: Any
) -> None:
    page = open_page(request.getfixturevalue(which), color_scheme=scheme)
    assert page.evaluate(CONTRAST) == []


def test_printed_it_is_light_and_without_what_can_only_be_clicked(open_page: Open, static: str) -> None:
    page = open_page(static, color_scheme="dark", width=794)  # A4
    page.emulate_media(media="print")
    for button in page.locator("button, #tools").all():
        assert button.is_hidden()
    assert page.evaluate(BACKGROUND) == "rgb(255, 255, 255)"
    base, tuned = (card(page, 0).locator(f".list.{side}").bounding_box() for side in ("base", "tuned"))
    assert base is not None and tuned is not None
    assert base["y"] == tuned["y"] and base["width"] == pytest.approx(tuned["width"], abs=1)


# ------------------------------------------------------------------------------------------------ the served page


TEXTS = [
    "a cat sat on a mat",
    "a dog ate a bone",
    "rain falls on a mat",
    f"a fish {HOSTILE}",
    "the end of a day",
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComparisonServer]:
    """Two toy encoders over five passages, and the toy LM, which likes to copy."""
    store = store_of(tmp_path_factory.mktemp("served"), TEXTS)
    first, second = toy(TEXTS, seed=1), toy(TEXTS, seed=2)
    base, tuned = (
        Retriever(one.model, ArrayIndex(encode_passages(one.model, TEXTS))) for one in (first, second)
    )
    builder = PromptBuilder(first.tokenizer, retrieved_max_length=99, max_prompt_tokens=200, separator="")
    opened = Opened(store, base, tuned, ("base", "tuned"))
    appraiser = Appraiser(first.supervisor, first.tokenizer, builder)
    page = search_page(opened.names, "toy", k=4, examples=[Query("rain falls", "on a mat")])
    with ComparisonServer("127.0.0.1", 0, page, Searcher(opened, 4, appraiser)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
    first.supervisor.close()
    second.supervisor.close()


def best(retriever: Retriever, query: str) -> list[str]:
    """Independent of the page and its server: a product and a sort."""
    similarity = retriever.model.encode_document(TEXTS) @ retriever.model.encode_query(query)
    return [f"p{row}" for row in np.argsort(-similarity)[:4]]


def test_a_typed_query_gives_both_lists_and_what_the_lm_makes_of_them(
    open_page: Open, served: ComparisonServer, watched: Watched
) -> None:
    page = open_page(served.url)
    assert focused(page, "id") == "search"
    page.keyboard.type("a cat ate")
    opened = served.searcher.opened
    expect(page.locator(".passage")).to_have_count(8)
    for side, retriever in (("base", opened.base), ("tuned", opened.tuned)):
        assert page.locator(f".passage[data-side={side}] .id").all_inner_texts() == best(
            retriever, "a cat ate"
        )
    page.locator("#continuation").fill("sat on a mat")
    expect(page.locator(".follows .asked")).to_have_text("sat on a mat")
    # The LM copies: of the words "sat on a mat" the first passage holds all, so each gains 2.9 but "a", in the query.
    first = page.locator(".passage", has=page.locator(".id", has_text="p0")).first
    expect(first.locator(".gain .figure")).to_have_text("LM +8.70")
    expect(first.locator(".badge.best")).to_have_text("LM’s best")
    assert {url.split("?")[0] for url in watched.requests} == {served.url, f"{served.url}api/search"}


def test_a_held_out_query_is_one_click_away(open_page: Open, served: ComparisonServer) -> None:
    page = open_page(served.url)
    page.get_by_role("button", name="rain falls").click()
    expect(page.locator(".follows .asked")).to_have_text("on a mat")
    expect(page.locator(".passage")).to_have_count(8)
    page.locator("#count").fill("2")
    expect(page.locator(".passage")).to_have_count(4)


def test_the_served_page_on_a_phone_and_with_hostile_passages(
    open_page: Open, served: ComparisonServer
) -> None:
    page = open_page(served.url, width=390, height=844)
    page.locator("#search").fill(f"a fish {HOSTILE}")
    expect(page.locator(".passage .text", has_text="onerror").first).to_have_text(f"a fish {SHOWN}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("main img, article script").count() == 0


def test_a_failure_of_the_server_is_said(open_page: Open, served: ComparisonServer, watched: Watched) -> None:
    page = open_page(served.url)
    page.locator("#search").fill("x" * 20_001)
    expect(page.locator("#said")).to_contain_text("This did not work: a text of more than 20,000 characters")
    watched.complaints = [said for said in watched.complaints if "400" not in said]  # the browser's own line


# ------------------------------------------------------------------------------------------------ the report


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


def test_the_endpoint_gives_what_the_page_draws(open_page: Open, served: ComparisonServer) -> None:
    page = open_page(served.url)
    value = json.loads(
        page.evaluate(
            "url => fetch(url).then(a => a.text())", f"{served.url}api/search?query={quote('a cat')}"
        )
    )
    assert [value["passages"][place["passage"]]["id"] for place in value["base"]] == best(
        served.searcher.opened.base, "a cat"
    )
    assert value["scored"]["of"] == "query"
