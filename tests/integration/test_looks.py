"""What people look at, in a real browser: the report, by day and by night, on a desk and on a phone; the docs."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from docs import record
from st_dimreduce import __version__
from st_dimreduce.evaluation.compare import compare_embeddings
from st_dimreduce.evaluation.embeddings import Embedded, Stored
from st_dimreduce.evaluation.peers import peers
from st_dimreduce.evaluation.report import write_html
from st_dimreduce.texts import Question
from tests.helpers.browsing import DESKTOP, PHONE, accessibility_errors, contrasts, set_page, sticks_out
from tests.helpers.serving import ATTACK, KOREAN, LONG

pytest.importorskip("selenium")

from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from docs import screenshots

_SCROLLED_BY_KEYS = "return [...document.querySelectorAll('pre > code')].every((code) => code.tabIndex === 0)"

pytestmark = [pytest.mark.component("Chromium"), pytest.mark.wings("apps", "evaluation")]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of two reduced models in all precisions, and of peers; some texts are long, hostile, or Korean."""
    rng = np.random.default_rng(0)
    documents = rng.standard_normal((60, 384)).astype(np.float32)
    base = Embedded(documents + rng.standard_normal(documents.shape).astype(np.float32), documents, seconds=61.2)
    sizes = {"all-MiniLM-L6-v2-64-bytes": 128, "the name of a model that is longer than any should be" * 2: 16}
    reduced = {name: Embedded(base.queries[:, :k], documents[:, :k], seconds=60.9) for name, k in sizes.items()}
    precisions = ("float32", "int8", "int4", "int2", "binary")
    stored = [Stored(name, small, precision) for name, small in reduced.items() for precision in precisions]
    texts = [LONG, ATTACK, KOREAN, "x" * 400, *(f"document {row}" for row in range(56))]
    question = Question(texts, [f"{text}, where is it?" for text in texts], [{row} for row in range(60)])
    path = tmp_path_factory.mktemp("report") / "report.html"
    comparison = compare_embeddings(base, [*stored, *peers(base, [16, 64, 128])], question.relevant)
    write_html(comparison, path, question, price=2.5)
    return path


def open_all(browser):
    browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("dark", [False, True])
def test_the_report_fits_and_every_word_is_readable(browser, report, width, dark, tmp_path):
    set_page(browser, width, dark)
    browser.get(report.as_uri())
    browser.get_log("browser")
    verdict, plot = browser.find_element(By.TAG_NAME, "h1"), browser.find_element(By.TAG_NAME, "figure")
    assert verdict.rect["y"] + verdict.rect["height"] < plot.rect["y"] < 600, "the first screen says it all"
    shown = [
        image.get_attribute("class") for image in browser.find_elements(By.TAG_NAME, "img") if image.is_displayed()
    ]
    assert set(shown) == {"dark" if dark else "light"}
    assert browser.save_screenshot(str(tmp_path / "report.png"))
    open_all(browser)
    assert not sticks_out(browser)
    assert min(contrasts(browser))[0] >= 4.5, min(contrasts(browser))
    assert not browser.get_log("browser")


@pytest.mark.component("Node.js")
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_report_breaks_no_rule_of_accessibility(browser, report, width):
    set_page(browser, width)
    browser.get(report.as_uri())
    assert not accessibility_errors(browser)
    open_all(browser)
    assert not accessibility_errors(browser)


def test_queries_are_closed_and_cut_to_three_lines(browser, report):
    set_page(browser, PHONE)
    browser.get(report.as_uri())
    assert not browser.find_elements(By.CSS_SELECTOR, "details[open]")
    lines = "const s = getComputedStyle(arguments[0]); return arguments[0].clientHeight / parseFloat(s.lineHeight)"
    for text in browser.find_elements(By.CSS_SELECTOR, "summary .text"):
        assert browser.execute_script(lines, text) <= 3.01


def test_the_report_prints_on_white_with_all_that_is_closed(browser, report):
    browser.get(report.as_uri())
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    try:
        heights = "return [...document.querySelectorAll('details .both')].map((each) => each.offsetHeight)"
        assert min(browser.execute_script(heights)) > 50
        assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not browser.execute_script("return document.querySelector('img.dark').offsetHeight")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


@pytest.fixture(scope="module")
def docs(tmp_path_factory):
    """The address of the docs; what the theme does in JavaScript needs a server."""
    site = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    subprocess.run(command, check=True, timeout=300)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=site)) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.component("Node.js")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_docs_break_no_rule_of_accessibility(browser, docs, width, dark):
    set_page(browser, width, dark)
    for page in ("", "tutorial/", "guides/sizes/", "faq/"):
        browser.get(f"{docs}/{page}")
        WebDriverWait(browser, 20).until(lambda page: page.execute_script(_SCROLLED_BY_KEYS))
        assert not accessibility_errors(browser), page


def test_screenshots_of_a_real_run(tmp_path):
    screenshots.main(tmp_path, 300)
    names = {f"{page}-{theme}.png" for page in ("report", "search-page") for theme in ("light", "dark")}
    assert {path.name for path in tmp_path.iterdir()} == names
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 150_000
        with Image.open(path) as image:
            assert len(image.convert("RGB").getcolors(2**24)) > 50, "nothing is on it"


def test_a_recording_of_a_real_run(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "COMMANDS", ["wc -l texts.txt", "st-dimreduce --version"])
    drawn = ElementTree.fromstring(record.draw(record.record(tmp_path)))  # noqa: S314, drawn here
    words = " ".join(drawn.itertext())
    for expected in ("$", "st-dimreduce --version", f"{record.TEXTS} texts.txt", __version__):
        assert expected in words
