"""Every page is run as printed, block after block: README, tutorial, guides and the other pages of docs/."""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import ExitStack, closing
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

from st_dimreduce.apps.docstrings import docstring_pairs
from tests.helpers.distributions import unpacked
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.pages import Forks, environment, programs, read_page, run_page, same_form

PATHS = sorted([Path("README.md"), Path("README.ko.md"), *Path("docs").rglob("*.md")], key=str)
TRANSLATED = [path for path in PATHS if path.name.endswith(".ko.md")]
PAGES = [page for page in map(read_page, (path for path in PATHS if path not in TRANSLATED)) if page.blocks]
MOST_NOT_RUN = 0.25  # of all blocks

# Pages load all-MiniLM-L6-v2 cut to its first layers, which encodes in a third of the time, under the names of all
# encoders: the figures of a page are not compared. What a search finds is, where WHOLE shows it: those load it whole.
WHOLE = {Path("docs/tutorial.md")}
LAYERS = 1
# A page of one component, which takes a minute to start, is run where that or the page was changed.
WINGS = {Path("docs/guides/cluster.md"): ["vectors/ray_data.py"]}
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
ENCODERS = (
    MINILM,
    "sentence-transformers/all-mpnet-base-v2",
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
    "intfloat/e5-base-v2",
)
TEXTS, LATER, WORDS = 600, 300, 24
_COMMENT = re.compile(r"\s+#\s.*$", re.MULTILINE)


@pytest.fixture(scope="module")
def shallow(minilm_path, tmp_path_factory):
    """The folder of all-MiniLM-L6-v2 with its first layers only."""
    folder = tmp_path_factory.mktemp("shallow")
    model = SentenceTransformer(minilm_path, device="cpu")
    transformer = model[0].auto_model
    transformer.encoder.layer = transformer.encoder.layer[:LAYERS]
    transformer.config.num_hidden_layers = LAYERS
    model.save_pretrained(str(folder))
    return folder


def hub(encoder, folder):
    """Return a Hub with the models that pages name: an encoder, and stand-ins for what is in no package."""
    DistilBertModel(DistilBertConfig(n_layers=1)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    server = LoopbackHub()
    for name in ENCODERS:
        server.hold(name, encoder)
    server.hold("distilbert/distilbert-base-uncased", folder)
    return server


@pytest.fixture(scope="module")
def prepared(shallow, tmp_path_factory):
    """What a reader of the pages has: texts, queries, and vectors of theirs."""
    folder = tmp_path_factory.mktemp("prepared")
    pairs = list(islice(docstring_pairs(), TEXTS + LATER))
    texts = [" ".join(document.split()[:WORDS]) for _, document in pairs]
    queries = [query for query, _ in pairs[:200]]
    vectors = SentenceTransformer(str(shallow), device="cpu").encode(texts, batch_size=64)

    def write(name, chosen):
        (folder / f"{name}.txt").write_text("\n".join(texts[chosen]) + "\n", encoding="utf-8")
        np.save(folder / f"{name}.npy", vectors[chosen])
        ids = range(len(texts))[chosen]
        lists = pa.FixedSizeListArray.from_arrays(vectors[chosen].ravel(), vectors.shape[1])
        table = pa.table({"id": pa.array(ids), "text": texts[chosen], "embedding": lists})
        pa.parquet.write_table(table, folder / f"{name}.parquet")

    first, later = slice(0, TEXTS), slice(TEXTS, None)
    half = slice(TEXTS, TEXTS + LATER // 2)
    for name in ("texts", "vectors", "sentences"):
        write(name, first)
    for name, chosen in {"new": later, "new_vectors": later, "monday": half, "tuesday": later, "old": later}.items():
        write(name, chosen)
    (folder / "queries.txt").write_text("\n".join(queries) + "\n", encoding="utf-8")
    (folder / "relevant.tsv").write_text("".join(f"{row + 1}\t{row + 1}\n" for row in range(len(queries))))
    (folder / "withdrawn.txt").write_text("3\n5\n")
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The package as the wheel holds it: what is in the repository alone is not there."""
    return unpacked(tmp_path_factory)


@pytest.fixture(scope="module")
def forks_with(package, tmp_path_factory):
    """Start, once for each encoder, the process whose forks run pages and the commands that they call."""
    with ExitStack() as stack:

        @cache
        def start(encoder):
            folder = tmp_path_factory.mktemp("forks")
            server = stack.enter_context(closing(hub(encoder, folder / "distilbert")))
            # The path of a socket has 107 characters at most.
            path = Path(stack.enter_context(tempfile.TemporaryDirectory()), "socket")
            variables = server.environment(folder / "hub", OMP_NUM_THREADS="1")
            variables = environment(programs(folder / "bin", path), variables, package)
            return stack.enter_context(closing(Forks(path, variables)))

        yield start


@pytest.fixture
def folder(prepared, tmp_path):
    """A folder of the reader's."""
    return Path(shutil.copytree(prepared, tmp_path / "reader"))


def say_what_is_not_run(page, record_property):
    for block in page.blocks:
        if block.not_run:
            record_property("not run", f"{page.path}:{block.line}: {block.not_run}")


def parameter(page):
    wings = [pytest.mark.wings(*WINGS[page.path], str(page.path))] if page.path in WINGS else []
    return pytest.param(page, id=str(page.path), marks=wings)


@pytest.mark.parametrize("page", map(parameter, PAGES))
def test_every_block_of_the_page_runs_as_printed(page, folder, shallow, forks_with, request, record_property):
    say_what_is_not_run(page, record_property)
    encoder = Path(request.getfixturevalue("minilm_path")) if page.path in WHOLE else shallow
    variables = {}
    if "postgresql://" in page.path.read_text(encoding="utf-8"):
        uri = request.getfixturevalue("postgres")
        variables = {"DATABASE_URL": uri, "PGUSER": "postgres", "PGHOST": uri.partition("host=")[2]}
    wrong = run_page(page, folder, forks_with(encoder), variables)
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("path", TRANSLATED, ids=str)
def test_a_translated_page_has_the_blocks_of_its_original(path):
    """But for comments: so it is not run once more."""

    def blocks(path):
        return [(each.kind, _COMMENT.sub("", each.code), each.status) for each in read_page(path).blocks]

    assert blocks(path) == blocks(path.with_name(path.name.replace(".ko.md", ".md")))


def test_few_blocks_are_not_run():
    blocks = [block for page in PAGES for block in page.blocks]
    assert len(blocks) > 20
    assert all(len(block.not_run) > 10 for block in blocks if block.not_run), "a reason"
    assert sum(bool(block.not_run) for block in blocks) <= MOST_NOT_RUN * len(blocks)


def test_figures_and_spaces_may_differ_and_words_may_not():
    assert same_form("reduced  128 │ 58.1 (52-61)\n", "reduced 64 58.21 (5-6)")
    assert same_form("a b c d 5", "a ... d 7")
    assert not same_form("reduced 128 float32", "reduced 128 floats")
    assert not same_form("reduced 128", "reduced 128 more")


def test_what_a_page_says_wrong_is_found(folder, shallow, forks_with, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        """
```python
size = 3
(size, 4)  # (3, 4)
size  # "three"
print("a", size)
```

```text
a 5
```

```python
print(undefined)
```

<!-- exits with 2 -->
```bash
st-dimreduce reduce nothing.txt
```

```text
... Missing argument ...
```

```console
$ echo one
one
$ echo two
three
```

<!-- not run: needs a GPU -->
```bash
false
```

```bash
pip install 'st_dimreduce[nothing]'
```
"""
    )
    wrong = run_page(read_page(page), folder, forks_with(shallow))
    lines = [each.splitlines()[0].removeprefix(str(page)) for each in wrong]
    assert [line.partition(" ")[0] for line in lines] == [":3", ":14", ":27", ":39"]
    assert "three" in wrong[0]
    assert "undefined" in wrong[1]
    assert "no extra" in wrong[3]
