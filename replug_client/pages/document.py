"""A whole page in one file: its policy lets run and show what stands in it, and nothing that text smuggled in."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files

from replug_client.pages.markup import Markup, clean, join, tag
from replug_client.pages.style import CSS

# In JSON, as in HTML's text, these begin what a browser would read as more than text.
_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
_ICON = "data:,"  # without one a browser asks the server for favicon.ico


def asset(name: str) -> str:
    """The text of a file in ``replug_client/pages/assets``."""
    return files("replug_client.pages").joinpath("assets", name).read_text("utf-8")


def document(
    title: str,
    body: Sequence[object],
    *,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    data: Mapping[str, object] | None = None,
    same_origin: bool = False,
) -> str:
    """A self-contained HTML page.

    Its Content-Security-Policy names the hash of each style and script given here, so that no other one runs,
    whatever got into the page, and nothing is loaded from anywhere.

    Args:
        title: Of the window.
        body: What stands in it; strings that are no Markup are escaped.
        styles: CSS behind the common one.
        scripts: JavaScript, run in order behind the body.
        data: Values for the scripts: a JSON block of this id each.
        same_origin: The page may ask the server that it came from.
    """
    every = [CSS, *styles]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy(every, scripts, same_origin)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("link", rel="icon", href=_ICON),
        *(_raw("style", text) for text in every),
    )
    blocks = [json_block(name, value) for name, value in (data or {}).items()]
    content = join([*body, *blocks, *(_raw("script", text) for text in scripts)], "\n")
    return "<!doctype html>\n" + tag("html", head, tag("body", content), lang="en") + "\n"


def policy(styles: Sequence[str], scripts: Sequence[str], same_origin: bool = False) -> str:
    """The Content-Security-Policy of a page with these styles and scripts, and none besides."""
    parts = [
        "default-src 'none'",
        f"style-src {_sources(styles)}",
        f"script-src {_sources(scripts)}",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    if same_origin:
        parts.append("connect-src 'self'")
    return "; ".join(parts)


def json_block(name: str, value: object) -> Markup:
    """A block of data that a script reads by its id; nothing in it can end it, or be read as markup.

    Raises:
        ValueError: NaN or infinity.
    """
    text = json.dumps(cleaned(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character, escaped in _ESCAPED.items():
        text = text.replace(character, escaped)
    return tag("script", Markup(text), type="application/json", id=name)


def cleaned(value: object) -> object:
    """A value of JSON's kinds with each of its texts as :func:`~replug_client.pages.markup.clean` gives it."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(str(key)): cleaned(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [cleaned(item) for item in value]
    return value


def _sources(texts: Sequence[str]) -> str:
    if not texts:
        return "'none'"
    digests = (hashlib.sha256(text.encode()).digest() for text in texts)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _raw(name: str, text: str) -> Markup:
    """The project's own script or style, which is not escaped in HTML."""
    if f"</{name}" in text.lower():
        raise ValueError(f"a {name} that ends itself cannot stand in a page")
    return tag(name, Markup(text))
