"""A page in one file: its data cannot end itself, and its policy names what it holds."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replug_client.pages.document import asset, document, json_block

HOSTILE = "</script><!--<script>\u2028 & <b> \u202e\x00"


class Elements(HTMLParser):
    """Which elements a browser would see."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)


@given(st.text(st.characters(exclude_categories=())))
def test_a_block_of_data_holds_any_text(text: str) -> None:
    block = json_block("data", {"text": text + HOSTILE})
    inside = block.removeprefix('<script type="application/json" id="data">').removesuffix("</script>")
    assert not re.search("[<>&]", inside) and inside.isascii()
    value = json.loads(inside)["text"]
    assert len(value) <= len(text + HOSTILE)
    assert not re.search("[\x00\u202e\ud800-\udfff]", value)


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        json_block("data", [float("nan")])


def test_the_policy_has_the_hash_of_each_script_and_style() -> None:
    page = document(HOSTILE, [HOSTILE], styles=["p { color: red }"], scripts=["const a = 1 < 2;"])
    assert Elements(page).seen.count("script") == 1
    policy = re.search(r'Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    said = policy[1].replace("&#x27;", "'")
    for text in re.findall(r"<(?:script|style)>(.*?)</(?:script|style)>", page, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in said
    assert "default-src 'none'" in said and "connect-src" not in said and "unsafe" not in said
    assert "connect-src 'self'" in document("a", [], same_origin=True).replace("&#x27;", "'")


def test_a_script_that_ends_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="ends itself"):
        document("a", [], scripts=["'</SCRIPT>'"])


@pytest.mark.parametrize("name", ["comparison.js", "comparison_list.js", "comparison_search.js", "keys.js"])
def test_scripts_put_text_in_as_text(name: str) -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", asset(name))
