"""What the tests of every page share: text that wants to do harm, and what is looked at in a page."""

from __future__ import annotations

from playwright.sync_api import Page

HOSTILE = (
    "</script><script>alert('block')</script><img src=x onerror=alert('image')>"
    "<svg onload=alert('svg')> &lt;b&gt; <!-- ${alert('template')} \u202egnp.exe\u202c \x00 \x1b[31m"
    '"><a href="javascript:alert(1)">'
)
# What reaches the page of it: controls and turned directions as U+FFFD.
SHOWN = HOSTILE.translate({ord(c): "\ufffd" for c in "\u202e\u202c\x00\x1b"})


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


def focused(page: Page, name: str) -> str | None:
    value: str | None = page.evaluate("name => document.activeElement.getAttribute(name)", name)
    return value
