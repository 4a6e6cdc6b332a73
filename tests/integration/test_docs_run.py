"""Every page is run as printed, block after block: README, tutorial, guides and the other pages of docs/."""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

from st_dimreduce.apps.docstrings import docstring_pairs
from tests.helpers.distributions import unpacked
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.pages import Forks, environment, programs, read_page, run_page, same_form

PATHS = sorted([Path("README.md"), Path("README.ko.md"), *Path("docs").rglob("*.md")], key=str)
TRANSLATED = [path for path in PATHS if path.name.endswith(".ko.md")]
PAGES = [page for page in map(read_page, (path for path in PATHS if path not in TRANSLATED)) if page.blocks]
MOST_NOT_RUN = 0.25  # of all blocks

# all-MiniLM-L6-v2 is itself; models that are in no package are it as well, under their own names.
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
def hub(minilm_path, tmp_path_factory):
    """A Hub with the models that pages name: the real all-MiniLM-L6-v2, and stand-ins for what is in no package."""
    folder = tmp_path_factory.mktemp("models")
    model = DistilBertModel(DistilBertConfig(n_layers=1))
    model.save_pretrained(folder / "distilbert")
    AutoTokenizer.from_pretrained(minilm_path).save_pretrained(folder / "distilbert")
    sources = dict.fromkeys(ENCODERS, Path(minilm_path))
    sources |= {"distilbert/distilbert-base-uncased": folder / "distilbert"}
    with closing(LoopbackHub()) as server:
        for name, source in sources.items():
            server.hold(name, source)
        yield server


@pytest.fixture(scope="module")
def prepared(minilm, tmp_path_factory):
    """What a reader of the pages has: texts, queries, and vectors of theirs, of all-MiniLM-L6-v2."""
    folder = tmp_path_factory.mktemp("prepared")
    pairs = list(islice(docstring_pairs(), TEXTS + LATER))
    texts = [" ".join(document.split()[:WORDS]) for _, document in pairs]
    queries = [query for query, _ in pairs[:200]]
    vectors = minilm.encode(texts, batch_size=64)

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
def forks(hub, package, tmp_path_factory):
    """The process whose forks run pages, and the commands that they call."""
    folder = tmp_path_factory.mktemp("forks")
    with tempfile.TemporaryDirectory() as short:  # the path of a socket has 107 characters at most
        path = Path(short, "socket")
        variables = hub.environment(folder / "hub", OMP_NUM_THREADS="1")
        with closing(Forks(path, environment(programs(folder / "bin", path), variables, package))) as forks:
            yield forks


@pytest.fixture
def folder(prepared, tmp_path):
    """A folder of the reader's."""
    return Path(shutil.copytree(prepared, tmp_path / "reader"))


def say_what_is_not_run(page, record_property):
    for block in page.blocks:
        if block.not_run:
            record_property("not run", f"{page.path}:{block.line}: {block.not_run}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.path))
def test_every_block_of_the_page_runs_as_printed(page, folder, forks, request, record_property):
    say_what_is_not_run(page, record_property)
    variables = {}
    if "postgresql://" in page.path.read_text(encoding="utf-8"):
        uri = request.getfixturevalue("postgres")
        variables = {"DATABASE_URL": uri, "PGUSER": "postgres", "PGHOST": uri.partition("host=")[2]}
    wrong = run_page(page, folder, forks, variables)
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


def test_what_a_page_says_wrong_is_found(folder, forks, tmp_path):
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
    wrong = run_page(read_page(page), folder, forks)
    lines = [each.splitlines()[0].removeprefix(str(page)) for each in wrong]
    assert [line.partition(" ")[0] for line in lines] == [":3", ":14", ":27", ":39"]
    assert "three" in wrong[0]
    assert "undefined" in wrong[1]
    assert "no extra" in wrong[3]
