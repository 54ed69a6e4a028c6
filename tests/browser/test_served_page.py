"""The page where queries are typed, with its server, in a real browser."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from urllib.parse import quote

import numpy as np
import pytest
from playwright.sync_api import expect

from replug_client.evaluation.appraisal import Appraiser
from replug_client.evaluation.comparison_page import search_page
from replug_client.evaluation.comparison_server import ComparisonServer, Searcher
from replug_client.evaluation.retrieval import Opened
from replug_client.evaluation.tuned_run import Query
from replug_client.retriever.encoder import encode_passages
from replug_client.retriever.index import ArrayIndex
from replug_client.retriever.search import Retriever
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.training.toy import toy
from tests.browser.conftest import Open, Watched
from tests.browser.pages import HOSTILE, SHOWN, focused
from tests.retriever.tiny import store_of

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
