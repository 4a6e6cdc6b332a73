"""Shared by the tests of pages: a browser of some width, by day or by night, and what it finds wrong."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tests.helpers.environments import node_modules

PHONE, DESKTOP = 390, 1280

_CONTRAST = """
const light = (c) => { const [r, g, b] = c.match(/[0-9.]+/g).map((v) => v / 255)
  .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
const back = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
  if (!/, 0\\)$/.test(c)) return c; } };
return [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() &&
    [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).map((e) => {
  const [a, b] = [light(getComputedStyle(e).color), light(back(e))].sort((x, y) => y - x);
  return [(a + .05) / (b + .05), e.tagName + "." + e.className]; });
"""
_STICKS_OUT = """
return [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() &&
    e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map((e) => e.outerHTML.slice(0, 80));
"""
_RUN_AXE = """
const done = arguments[arguments.length - 1];
axe.run(document).then((found) => done(found.violations.map((v) => [v.id, v.help, v.nodes.map((n) => n.html)])));
"""


@cache
def _axe():
    folder = node_modules(Path(__file__).parent / "axe") / "node_modules"
    return (folder / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@contextmanager
def chromium():
    """Chromium without a window; its logs of the console and the network are kept."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


def set_page(browser, width=1200, dark=False, height=900):
    """What the browser opens from now on is so wide and high, and dark or light."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})


def contrasts(browser):
    """The contrast of every element that shows text, with what it is."""
    return browser.execute_script(_CONTRAST)


def sticks_out(browser):
    """What is wider than the page, so that it would have to be scrolled."""
    inner, scrolled = browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    return browser.execute_script(_STICKS_OUT) or ([f"{scrolled} of {inner} pixels"] if scrolled > inner else [])


def accessibility_errors(browser):
    """What axe-core has against the page."""
    browser.execute_script(_axe())
    return browser.execute_async_script(_RUN_AXE)
