"""`replug compare --html` and the page that `--serve` serves: the same drawing, from data within or from the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from replug_client.evaluation.comparison import Comparison
from replug_client.evaluation.comparison_view import page_data
from replug_client.evaluation.tuned_run import Query
from replug_client.pages.document import asset, document
from replug_client.pages.markup import Markup, join, tag

_KEYS = {
    "/": "to the search field (Esc leaves it)",
    "j k": "next, previous query",
    "↓ ↑": "in a list: next, previous passage",
    "→ ←": "to the same passage in the other list, or to the one of its rank",
    "Enter": "show the whole passage",
    "e": "show all passages whole",
    "t": "dark or light",
    "?": "this help",
}
_WHICH = {"all": "all", "first": "another first passage", "new": "with new passages"}
_WHICH_SCORED = {"better": "LM prefers tuned\u2019s first", "worse": "LM prefers base\u2019s first"}
_ORDER = {"given": "as given", "changed": "changed most first"}
_ORDER_SCORED = {"gain": "LM gains most first", "loss": "LM loses most first"}


def comparison_page(comparison: Comparison, common: frozenset[str] = frozenset()) -> str:
    """The static page: every shown query with both lists, to be searched and filtered; needs nothing but a browser.

    Args:
        comparison: With or without the LM's scores.
        common: Words that are not marked, see :func:`~replug_client.evaluation.highlight.common_words`.
    """
    data = page_data(comparison, common)
    scored = comparison.supervisor is not None
    tools = [
        tag(
            "label", "Search", _field("input", type="search", id="search", autocomplete="off"), class_="wide"
        ),
        tag("label", "Show", _select("which", _WHICH | (_WHICH_SCORED if scored else {}))),
        tag("label", "Order", _select("order", _ORDER | (_ORDER_SCORED if scored else {}))),
        _texts_button(),
    ]
    names = (comparison.base, comparison.tuned, comparison.supervisor)
    body = _body("What tuning changed", names, _tiles(data), tools, Markup(""))
    title = f"{comparison.base} and {comparison.tuned}, side by side"
    return _page(title, body, "comparison_list.js", data, same_origin=False)


def search_page(
    names: tuple[str, str], supervisor: str | None, *, k: int, examples: Sequence[Query] = ()
) -> str:
    """The served page: a query is typed, and both lists come from the server.

    Args:
        names: Of the base and the tuned retriever.
        supervisor: Of the LM that scores; None where none does.
        k: Passages a list, where nothing else is asked for.
        examples: Queries to begin with.
    """
    about = (
        "Log-likelihoods are of this; left empty, of the query itself."
        if supervisor
        else "Its words are marked. No LM scores it, for none was named (--model)."
    )
    tools = [
        tag("label", "Query", _field("textarea", id="search", rows=3, spellcheck="false"), class_="wide"),
        tag(
            "label",
            "What really follows (may stay empty)",
            _field("textarea", id="continuation", rows=3, spellcheck="false", placeholder=about),
            class_="wide",
        ),
        tag("label", "Passages", _field("input", type="number", id="count", min=1, max=100, value=k)),
        tag("button", "Search", type="submit"),
        _texts_button(),
    ]
    data = {
        "base": names[0],
        "tuned": names[1],
        "supervisor": supervisor,
        "k": k,
        "examples": [{"query": item.text, "continuation": item.continuation} for item in examples],
    }
    below = tag("div", "Held-out queries: ", id="examples", hidden="")
    body = _body("Base and tuned, as you type", (*names, supervisor), Markup(""), tools, below)
    return _page("replug: base and tuned", body, "comparison_search.js", data, same_origin=True)


def _page(
    title: str, body: Sequence[object], script: str, data: Mapping[str, Any], *, same_origin: bool
) -> str:
    scripts = ["theme.js", "comparison.js", "keys.js", script]
    return document(
        title,
        body,
        styles=[asset("comparison.css")],
        scripts=[asset(name) for name in scripts],
        data={"data": data},
        same_origin=same_origin,
    )


def _body(
    heading: str,
    names: tuple[str, str, str | None],
    tiles: Markup,
    tools: Sequence[object],
    below: Markup,
) -> list[Markup]:
    base, tuned, supervisor = names
    said = ["base ", tag("b", base), ", tuned ", tag("b", tuned)]
    if supervisor is not None:
        said += ["; scored by ", tag("b", supervisor)]
    top = tag(
        "div",
        tag("div", tag("h1", heading), tag("p", *said, class_="models")),
        tag(
            "div",
            tag("button", "Keys", type="button", id="keys-open"),
            tag("button", "Dark", type="button", data_theme_switch=""),
            class_="buttons",
        ),
        class_="top",
    )
    return [
        tag("a", "Skip to the queries", href="#queries", class_="skip"),
        tag(
            "main",
            top,
            tiles,
            _legend(supervisor is not None),
            tag("form", *tools, id="tools", role="search"),
            below,
            tag("p", id="said", role="status", aria_live="polite"),
            tag(
                "noscript",
                tag(
                    "p",
                    "This page draws its lists with a script that stands in it; allow scripts to see them.",
                ),
            ),
            tag("div", id="queries", tabindex=-1),
        ),
        _help(),
    ]


def _tiles(data: Mapping[str, Any]) -> Markup:
    value, gain = data["agreement"], data["gain"]
    shown = len(data["queries"])
    tiles = [
        _tile("Queries", f"{shown:,}" if shown == value["n"] else f"{shown:,} of {value['n']:,}"),
        _tile(f"Overlap@{value['k']}", f"{value['overlap']:.2f}"),
        _tile("Rank-biased overlap", f"{value['rbo']:.2f}"),
        _tile("Kendall\u2019s \u03c4", f"{value['tau']:+z.2f}".replace("-", "\u2212")),
        _tile("Same first passage", f"{value['first_kept']:.0%}"),
    ]
    what = "held-out query" if data["held_out"] else "query"
    said = f"Means over {value['n']:,} {what if value['n'] == 1 else what[:-1] + 'ies'}."
    if gain["n"]:
        tone = "good" if gain["mean"] > 0 else "bad" if gain["mean"] < 0 else None
        tiles.append(_tile("LM, first passage", f"{gain['mean']:+z.2f} nats".replace("-", "\u2212"), tone))
        said += (
            " LM, first passage: what the tuned retriever\u2019s gives more than the base\u2019s, mean over the "
            f"{gain['n']:,} scored of those shown ({gain['better']:,} better, {gain['worse']:,} worse)."
        )
    if data["supervisor"] is not None and gain["n"] < shown:
        said += f" Not scored: {shown - gain['n']:,}; each says why."
    return join([tag("div", *tiles, class_="tiles"), tag("p", said, class_="under")])


def _tile(name: str, value: str, tone: str | None = None) -> Markup:
    return tag("div", tag("span", name), tag("b", value, class_=tone), class_="tile")


def _legend(scored: bool) -> Markup:
    parts = [
        tag("span", tag("mark", "word", class_="in-query"), " also in the query"),
        tag("span", tag("mark", "word", class_="in-continuation"), " only in what really follows"),
        tag("span", "not marked: words that more than a fifth of the passages have"),
    ]
    if scored:
        parts.append(tag("span", "LM: nats that the passage adds to the log-likelihood; 0 is no passage"))
    return tag("div", *parts, class_="legend soft")


def _help() -> Markup:
    rows = [
        join([tag("dt", *(tag("kbd", key) for key in keys.split())), tag("dd", said)])
        for keys, said in _KEYS.items()
    ]
    close = tag("form", tag("button", "Close"), method="dialog")
    return tag(
        "dialog",
        tag("h2", "Keys", id="keys-title"),
        tag("dl", *rows),
        close,
        id="keys",
        aria_labelledby="keys-title",
    )


def _texts_button() -> Markup:
    return tag(
        "button", "Whole texts", type="button", id="texts", title="Show every passage whole, or short again"
    )


def _field(name: str, **attributes: object) -> Markup:
    return tag(name, **attributes)


def _select(name: str, choices: Mapping[str, str]) -> Markup:
    return tag("select", *(tag("option", said, value=value) for value, said in choices.items()), id=name)
