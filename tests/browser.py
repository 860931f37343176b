"""A page in headless Chromium: what goes wrong in it, what it fetches, whether it fits, and how its text stands out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (390, 1280)  # px: a phone, a desk
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
# Of every element with text of its own: the contrast of WCAG 2.2 (1.4.3) between its colour and what lies behind it.
CONTRASTS = """() => {
  const channels = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const over = (top, below) => {
    const a = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map(i => a * top[i] + (1 - a) * below[i]);
  };
  const behind = element => {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(channels(getComputedStyle(one).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const result = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].filter(n => n.nodeType === 3 && n.textContent.trim());
    if (!own.length || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const ink = channels(element instanceof SVGElement ? style.fill : style.color);
    const back = behind(element), front = luminance(over(ink, back)), ground = luminance(back);
    const ratio = (Math.max(front, ground) + 0.05) / (Math.min(front, ground) + 0.05);
    result.push({ratio, text: own[0].textContent.trim().slice(0, 40), size: parseFloat(style.fontSize)});
  }
  return result;
}"""
WIDER = """() => [...document.querySelectorAll('body *')].filter(one => {
  for (let up = one.parentElement; up; up = up.parentElement) {
    if (getComputedStyle(up).overflowX === 'auto') return false;
  }
  return one.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map(one => one.tagName + '.' + (one.getAttribute('class') || '')).slice(0, 5)"""


@dataclass
class Seen:
    """What a page showed at one width."""

    messages: list[str] = field(default_factory=list)  # of the console, and errors
    requests: list[str] = field(default_factory=list)  # for what is not in the page
    overflow: int = 0  # px that it is wider than the window
    wider: list[str] = field(default_factory=list)  # elements that reach beyond the window
    contrasts: list[dict] = field(default_factory=list)
    broken: int = 0  # pictures that did not load
    answer: Any = None  # to what was asked of it


def chromium() -> str:
    """The browser; a test that needs it is skipped where it or its driver is absent."""
    pytest.importorskip("playwright", reason="no playwright: pip install playwright")
    path = os.environ.get("SLIDEFIELD_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium, or name one in SLIDEFIELD_CHROMIUM")
    return path


@contextmanager
def started() -> Iterator[Any]:
    """A Chromium of playwright's, headless, while this lasts."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


def listened_to(page: Any) -> Seen:
    """What a page says and fetches from now on."""
    seen = Seen()
    page.on("console", lambda message: seen.messages.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.messages.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    return seen


def measured(page: Any, seen: Seen) -> Seen:
    """How a page fits into its window now, and how its text stands out."""
    seen.overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    seen.wider, seen.contrasts = page.evaluate(WIDER), page.evaluate(CONTRASTS)
    seen.broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
    return seen


def looked_at(file: Path, pictures: Path, ask: str = "null") -> dict[int, Seen]:
    """A page at every width, with a screenshot of the whole of it.

    Args:
        pictures: Folder that the screenshots are written to.
        ask: JavaScript whose value is ``answer``.
    """
    seen = {}
    pictures.mkdir(parents=True, exist_ok=True)
    with started() as browser:
        for width in WIDTHS:
            page = browser.new_page(viewport={"width": width, "height": 900})
            seen[width] = one = listened_to(page)
            page.goto(file.resolve().as_uri(), wait_until="load")
            page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
            here = (file.resolve().as_uri(), "data:")
            one.requests = [url for url in one.requests if not url.startswith(here)]
            measured(page, one).answer = page.evaluate(ask)
            page.screenshot(path=str(pictures / f"{file.stem}-{width}.png"), full_page=True)
            page.close()
    return seen
