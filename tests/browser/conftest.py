"""Debian's Chromium, started once for all tests that drive a page, and pages that fail on what should not happen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SECONDS = 20


def chromium() -> str | None:
    """The path of a Chromium; ``REPLUG_CHROMIUM`` names another."""
    named = os.environ.get("REPLUG_CHROMIUM")
    return named or next(filter(None, map(shutil.which, _NAMES)), None)


# Of a module, not of the session: while it is open, Playwright runs an event loop in this thread, which would be
# in the way of other tests' own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        message = (
            "no Chromium found; install it with: apt-get install chromium (or name one with REPLUG_CHROMIUM)"
        )
        if os.environ.get("REPLUG_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments, timeout=120_000)
        yield browser
        browser.close()


@dataclass
class Watched:
    """What a page did besides being looked at."""

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


Open = Callable[..., Page]


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def open_page(browser: Browser, watched: Watched) -> Iterator[Open]:
    """Opens an address; in the end no dialog may have opened, and nothing have been said on the console."""
    contexts = []

    def call(url: str, *, width: int = 1280, height: int = 900, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(_SECONDS * 1000)
        page.on("request", lambda request: watched.requests.append(request.url))
        page.on("console", lambda message: watched.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: watched.complaints.append(f"error: {error}"))

        def dismiss(dialog: Any) -> None:
            watched.complaints.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("dialog", dismiss)
        page.goto(url)
        return page

    yield call
    for context in contexts:
        context.close()
    assert watched.complaints == []
