"""The search page in a real browser."""

from __future__ import annotations

import json
import re

import pytest

from st_dimreduce.apps.search_page import Corpus
from tests.helpers.browsing import DESKTOP, PHONE, accessibility_errors, contrasts, set_page, sticks_out
from tests.helpers.serving import ATTACK, KOREAN, LONG, TEXTS, ask, make_base, make_folder, served

pytest.importorskip("selenium")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

LONG_NAME = "small-in-four-dimensions-" * 8

pytestmark = [pytest.mark.component("Chromium"), pytest.mark.wings("apps", "examples/browser")]


@pytest.fixture(scope="module")
def site(tiny_path, tmp_path_factory):
    folder = make_folder(make_base(tiny_path), tmp_path_factory.mktemp("page") / "small")
    with served(Corpus(folder, TEXTS)) as where:
        yield where


@pytest.fixture(scope="module")
def several(tiny_path, tmp_path_factory):
    """A page with two reduced models, the second of a name as long as a folder's may be."""
    base, work = make_base(tiny_path), tmp_path_factory.mktemp("several")
    folders = [make_folder(base, work / "small"), make_folder(base, work / LONG_NAME, 4, "int8")]
    with served(Corpus(folders, TEXTS)) as where:
        yield where


def open_page(browser, site, width=1200, dark=False):
    set_page(browser, width, dark)
    browser.get(site)
    WebDriverWait(browser, 20).until(lambda page: page.find_elements(By.CSS_SELECTOR, "option"))


def type_and_enter(browser, text):
    browser.switch_to.active_element.send_keys(Keys.CONTROL, "a")
    browser.switch_to.active_element.send_keys(text + Keys.ENTER)
    return status(browser, "found by both")


def status(browser, text):
    waiting = WebDriverWait(browser, 20)
    waiting.until(lambda page: text in page.find_element(By.CSS_SELECTOR, "[role=status][aria-live]").text)
    return browser.find_element(By.ID, "status").text


def answers(browser, side):
    return browser.find_elements(By.CSS_SELECTOR, f"#{side} ol > li")


def test_type_press_enter_read_what_differs(browser, site, tmp_path):
    open_page(browser, site)
    said = type_and_enter(browser, "a fish swims near")
    _, found = ask(site, q="a fish swims near")
    both = f"{found['shared']} of 10 answers are found by both. The reduced vectors take 1/32 of the bytes."
    assert re.fullmatch(re.escape(both) + r" Round trip [\d.]+ ms\.", said), said
    kinds = set()
    for side, other in (("full", "reduced"), ("reduced", "full")):
        section = browser.find_element(By.ID, side)
        figures = " ".join(section.find_element(By.TAG_NAME, "dl").text.split())
        assert re.search(
            r"Bytes per vector (128|4) .* All vectors .* (bytes|kB) Encoding .* ms Search .* ms Searched every vector",
            figures,
        )
        assert len(answers(browser, side)) == 10
        for shown, answer in zip(answers(browser, side), found[side]["answers"], strict=True):
            marks = shown.find_element(By.CSS_SELECTOR, ".marks").text
            assert int(shown.get_attribute("data-document")) == answer["document"]
            if answer["other_rank"] is None:
                wanted, kind = f"only here, not in the {other} model", "only"
            elif answer["other_rank"] == answer["rank"]:
                wanted, kind = "same rank", None
            else:
                arrow = "▲" if answer["rank"] < answer["other_rank"] else "▼"
                wanted, kind = f"{arrow} rank {answer['other_rank']} in the {other} model", "moved"
            assert wanted in marks
            kinds.add(kind)
            found_kinds = [mark.get_attribute("class") for mark in shown.find_elements(By.CSS_SELECTOR, ".mark")]
            assert found_kinds == ([f"mark {kind}"] if kind else [])
    assert kinds >= {"only", "moved"}, "choose a query that shows both"
    assert browser.save_screenshot(str(tmp_path / "page.png"))
    assert (tmp_path / "page.png").stat().st_size > 20_000
    full, reduced = (browser.find_element(By.ID, side).rect for side in ("full", "reduced"))
    assert full["y"] == reduced["y"]
    assert full["x"] < reduced["x"]


def test_another_precision_searches_again(browser, site):
    open_page(browser, site)
    type_and_enter(browser, "a fish swims near")
    choice = Select(browser.find_element(By.ID, "precision"))
    assert choice.first_selected_option.text == "int4", "what the model was fitted for"
    choice.select_by_value("binary")
    status(browser, "1/128 of the bytes")
    assert "8 \u00d7 binary" in browser.find_element(By.ID, "reduced").text


def test_one_model_needs_no_choice(browser, site):
    open_page(browser, site)
    assert not browser.find_element(By.ID, "model").is_displayed()


def test_another_model_searches_again_and_shows_its_own_figures(browser, several):
    open_page(browser, several)
    type_and_enter(browser, "a fish swims near")
    model, precision = (Select(browser.find_element(By.ID, name)) for name in ("model", "precision"))
    assert [option.text for option in model.options] == ["small", LONG_NAME]
    precision.select_by_value("binary")
    status(browser, "1/128 of the bytes")
    for label, stored in ((LONG_NAME, "4 \u00d7 int8"), ("small", "8 \u00d7 int4")):
        browser.execute_script("document.getElementById('status').textContent = ''")
        model.select_by_value(label)
        status(browser, "found by both")
        assert precision.first_selected_option.text == stored.split()[-1], "what that model was fitted for"
        section = browser.find_element(By.ID, "reduced")
        assert section.find_element(By.CLASS_NAME, "name").text == label
        assert stored in section.text
        _, found = ask(several, q="a fish swims near", model=label)
        shown = [int(item.get_attribute("data-document")) for item in answers(browser, "reduced")]
        assert shown == [answer["document"] for answer in found["reduced"]["answers"]]
        said = browser.find_element(By.ID, "status").text
        assert said.startswith(f"{found['shared']} of 10 answers are found by both. ")


def test_a_choice_before_a_query_waits_for_one(browser, several):
    open_page(browser, several)
    Select(browser.find_element(By.ID, "model")).select_by_value(LONG_NAME)
    assert not browser.find_element(By.ID, "status").text
    browser.find_element(By.ID, "q").click()
    type_and_enter(browser, "a fish swims near")
    assert "4 \u00d7 int8" in browser.find_element(By.ID, "reduced").text


def test_the_model_is_chosen_by_keyboard(browser, several):
    open_page(browser, several)
    type_and_enter(browser, "a fish swims near")
    order = []
    for _ in range(3):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        focused = browser.switch_to.active_element
        order.append((focused.tag_name, focused.accessible_name))
        assert focused.value_of_css_property("outline-style") == "solid", "the focus is seen"
    assert order == [("select", "Reduced model"), ("select", "Reduced vectors stored as"), ("button", "Search")]
    browser.find_element(By.ID, "model").send_keys(Keys.ARROW_DOWN)
    WebDriverWait(browser, 20).until(lambda page: "4 \u00d7 int8" in page.find_element(By.ID, "reduced").text)


@pytest.mark.component("Node.js")
@pytest.mark.parametrize("width", [320, PHONE, DESKTOP])
@pytest.mark.parametrize("dark", [False, True])
def test_the_choice_of_a_model_fits_and_is_readable(browser, several, width, dark, tmp_path):
    open_page(browser, several, width, dark)
    type_and_enter(browser, "a fish swims near")
    Select(browser.find_element(By.ID, "model")).select_by_value(LONG_NAME)
    WebDriverWait(browser, 20).until(lambda page: "4 \u00d7 int8" in page.find_element(By.ID, "reduced").text)
    assert browser.save_screenshot(str(tmp_path / "page.png"))
    assert not sticks_out(browser)
    assert min(contrasts(browser))[0] >= 4.5
    assert not accessibility_errors(browser)


@pytest.mark.parametrize("width", [320, PHONE, DESKTOP])
def test_texts_stay_texts_and_nothing_sticks_out(browser, site, width):
    open_page(browser, site, width)
    browser.get_log("browser")
    for query in (ATTACK, KOREAN, LONG, "supercalifragilistic"):
        type_and_enter(browser, query)
        assert browser.execute_script("return innerWidth") == width
        assert not sticks_out(browser)
    type_and_enter(browser, ATTACK)
    shown = [item.find_element(By.CSS_SELECTOR, ".text").text for item in answers(browser, "full")]
    assert any("<img src=x onerror" in text and "</script>" in text for text in shown)
    assert browser.title == "Full and reduced, side by side"
    assert not browser.find_elements(By.CSS_SELECTOR, "main img, main script")
    assert not browser.get_log("browser"), "the policy had to refuse something"
    full, reduced = (browser.find_element(By.ID, side).rect for side in ("full", "reduced"))
    assert (full["x"] == reduced["x"]) == (width < 700), "on a phone the columns stack"


def test_the_page_asks_nobody_else(browser, site):
    browser.get_log("performance")
    open_page(browser, site)
    type_and_enter(browser, "a small dog")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert urls
    assert all(url.startswith((site, "data:")) for url in urls), urls


def test_by_keyboard_alone(browser, site):
    open_page(browser, site)
    assert browser.switch_to.active_element.get_attribute("id") == "q"
    type_and_enter(browser, LONG)
    order = []
    for _ in range(8):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        focused = browser.switch_to.active_element
        order.append(focused.tag_name)
        outline = focused.value_of_css_property("outline-style"), focused.value_of_css_property("outline-width")
        assert outline == ("solid", "3px"), "the focus is seen"
    assert order == ["select", *["button"] * 4, *["summary"] * 3], "examples, what the page says, whole texts"
    browser.find_elements(By.CSS_SELECTOR, ".rest summary")[0].send_keys(Keys.ENTER)
    assert browser.find_element(By.CSS_SELECTOR, "details[open] .text").is_displayed()
    for control in ("q", "precision"):
        assert browser.find_element(By.CSS_SELECTOR, f"label[for={control}]").text
    assert [heading.text for heading in browser.find_elements(By.TAG_NAME, "h2")] == ["Full model", "Reduced model"]
    for named in browser.find_elements(By.CSS_SELECTOR, "section, ol"):
        assert named.accessible_name in ("Full model", "Reduced model")


def test_what_is_wrong_is_said_on_the_page(browser, site):
    open_page(browser, site)
    browser.switch_to.active_element.send_keys("   " + Keys.ENTER)
    assert status(browser, "empty") == "the query is empty: type what to look for"
    browser.execute_script("window.fetch = () => Promise.reject(new TypeError('x'))")
    browser.switch_to.active_element.send_keys("cat" + Keys.ENTER)
    assert status(browser, "does not answer")


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("dark", [False, True])
def test_every_word_is_readable_by_day_and_by_night(browser, site, dark, width, tmp_path):
    open_page(browser, site, width, dark)
    type_and_enter(browser, "a fish swims near")
    browser.find_element(By.CSS_SELECTOR, "#help summary").click()
    ratios = contrasts(browser)
    assert {"SPAN.mark only", "SPAN.mark moved", "BUTTON."} <= {name for _, name in ratios}
    assert min(ratios)[0] >= 4.5, min(ratios)
    page = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", page))) < 60) == dark
    assert not sticks_out(browser)
    assert browser.save_screenshot(str(tmp_path / "page.png"))


@pytest.mark.component("Node.js")
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_no_rule_of_accessibility_is_broken(browser, site, width):
    open_page(browser, site, width)
    assert not accessibility_errors(browser)
    type_and_enter(browser, LONG)
    browser.find_element(By.CSS_SELECTOR, "#help summary").click()
    assert not accessibility_errors(browser)


def test_an_example_is_searched_at_a_click(browser, site):
    open_page(browser, site)
    examples = browser.find_elements(By.CSS_SELECTOR, "#examples button")
    assert len(examples) == 3
    query = examples[1].text
    examples[1].click()
    status(browser, "found by both")
    assert browser.find_element(By.ID, "q").get_attribute("value") == query
    assert query in answers(browser, "full")[0].text
