"""The comparison's page in a file, in a real browser."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from replug_client.corpus.records import Passage
from replug_client.evaluation.comparison import Comparison, QueryComparison, Worth, agreement, compare_query
from replug_client.evaluation.comparison_page import comparison_page
from tests.browser.conftest import Open, Watched
from tests.browser.pages import CONTRAST, HOSTILE, SHOWN, focused

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


def test_printed_it_is_light_and_without_what_can_only_be_clicked(open_page: Open, static: str) -> None:
    page = open_page(static, color_scheme="dark", width=794)  # A4
    page.emulate_media(media="print")
    for button in page.locator("button, #tools").all():
        assert button.is_hidden()
    assert page.evaluate(BACKGROUND) == "rgb(255, 255, 255)"
    base, tuned = (card(page, 0).locator(f".list.{side}").bounding_box() for side in ("base", "tuned"))
    assert base is not None and tuned is not None
    assert base["y"] == tuned["y"] and base["width"] == pytest.approx(tuned["width"], abs=1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_that_reading_needs(open_page: Open, static: str, scheme: Any) -> None:
    page = open_page(static, color_scheme=scheme)
    assert page.evaluate(CONTRAST) == []
