"""Likely mistakes on the command line, and the line that each gets: nothing is written, status 2."""

from __future__ import annotations

import shlex

import numpy as np
import pytest

from st_dimreduce import Codes, Head, Index, Size, save_portable
from tests.helpers.command import run
from tests.helpers.tiny import SENTENCES, make_tiny

MISTAKES = {
    # What is missing or misspelt.
    "reduce base": "Missing argument 'texts'.",
    "reduce base texts.txt --dim 8": "Missing option '--output' / '-o'.",
    "reduce base texts.txt --dims 8 -o o": "No such option: --dims",
    "reduec base texts.txt -o o": "No such command 'reduec'.",
    "reduce bse texts.txt --dim 8 -o o": "error: no model could be loaded from 'bse'",
    "reduce base text.txt -o o": "error: no file text.txt: give a file of texts, one per line, or - for standard input",
    # Sizes.
    "reduce base texts.txt --dim 8 --bytes 8 -o o": "error: dim and bytes were given: give exactly",
    "reduce base texts.txt --dim 99 -o o": "error: dim=99: choose a size from 1 to 32",
    "reduce base texts.txt --keep 99 -o o": "error: keep=99.0: choose a share greater than 0 and at most 1",
    "reduce base texts.txt --nested 4:8 -o o": "error: --nested 4:8: expected sizes with commas between",
    "reduce base texts.txt --dim 8 --store faiss -o o": "give bytes (--bytes) or keep (--keep)",
    "reduce base texts.txt --precision int3 -o o": "'int3' is not one of 'float32', 'int8', 'int4', 'int2', 'binary'.",
    "reduce base texts.txt --objective speed -o o": "'speed' is not one of 'quality', 'fidelity'.",
    "reduce base texts.txt --dim 8 --seed -1 -o o": "Invalid value for '--seed'",
    # Texts.
    "reduce base few.txt --dim 8 -o o": "error: 9 texts, 3 of them held out to measure on, are too few to fit 8",
    "reduce base same.txt --dim 8 -o o": "error: all 300 texts are the same: give texts that differ",
    "reduce base empty.txt -o o": "error: empty.txt holds no text: expected one text per line, or a column of them",
    "reduce base latin.txt -o o": "error: latin.txt is not UTF-8 (byte 3): expected a UTF-8 text file",
    "reduce base table.csv -o o": "error: table.csv has no column 'text': its columns are a, b; name one of these",
    # What is where another thing belongs.
    "reduce small texts.txt --dim 4 -o o": "error: the model is already reduced, to 8 dimensions",
    "reduce base texts.txt --dim 8 -o home": "home exists: choose another folder, or replace it with",
    "reduce base texts.txt --dim 8 -o home --force": "holds no modules.json: choose another folder",
    "compare small base --texts texts.txt": "error: the first model has a fitted head and 'base' has none: give the",
    "compare base small": "error: no texts to search were given: give --texts FILE, or --pairs FILE alone",
    "compare base small --texts texts.txt --relevant q.tsv": "but no queries were given: give --queries FILE",
    "serve base --texts texts.txt --port 0": "error: the model ends in Transformer, it has no head",
    "encode base texts.txt c.npy": "it has no head: give a reduced model, or reduce this one first",
    "encode small texts.txt c.csv": "c.csv ends in .csv: expected .npy, .parquet, .arrow, or no suffix for a folder",
    "search small other.npy query": "error: other.npy holds codes made by head ",
    "search small index query": "error: index is an index: search it with st-dimreduce index search, or Index.load",
    "check head": "error: head is a head: expected a model, which st-dimreduce attach makes of it",
    "export base -o o": "error: the model ends in Transformer, it has no head: give a reduced model, or reduce",
    "publish small name": "error: 'name' is not a name on the Hub: give one such as 'user/my-model'.",
    "attach base head -o o": "error: base holds no head: expected the folder of a head or of a reduced model",
    # Vectors.
    "fit texts.txt -o o": "error: texts.txt holds no vectors: give an array, .npy, .parquet or .arrow files",
    "fit few.npy --bytes 8 -o o": "error: 20 vectors are too few to hold any out for a choice: give 60, or a dimension",
    "fit nan.npy --dim 8 -o o": "error: the vector in row 7 holds NaN: drop or repair it, it has no direction",
    "fit fake.npy -o o": "error: fake.npy is not a complete .npy file of numbers: expected a file",
    "transform head narrow.npy o.npy": "error: the vectors have 8 dimensions, the head takes 32: use its own",
    "transform head x.npy codes.npy": "append the new rows of the source with append=True (--append), or replace it",
    "transform head codes.npy o.npy": "error: codes.npy: got uint8, expected floats: convert them first",
    "transform head x.npy other.npy --append": "error: {here}/other.npy holds codes made by head ",
    "index build x.npy -o o": "error: nothing beside x.npy says what its codes are",
    "index search index texts.txt": "error: texts.txt is not a .npy file: give transformed vectors, or texts with",
    "migrate postgres --table t --head head": "error: postgres is not a database: expected postgresql://...",
    "info home": "error: home holds no head: expected the folder of a head or of a reduced model",
}


NEEDS = {"index": "FAISS", "export": "ONNX Runtime"}


@pytest.fixture(scope="module")
def folder(tiny_path, tmp_path_factory):
    """A folder as a user's: a base model, what was made of it, texts and vectors, and much that is wrong."""
    folder = tmp_path_factory.mktemp("mistakes")
    base = make_tiny(tiny_path)
    base.save_pretrained(str(folder / "base"))
    vectors = base.encode(SENTENCES)
    head = Head.fit(vectors, Size(8, precision="int4"))
    head.save(folder / "head")
    save_portable(head.attach(base), folder / "small")
    other = Head.fit(vectors[::-1] * np.geomspace(1, 9, 32, dtype=np.float32), 8)
    head.transform_file(vectors, folder / "codes.npy")
    other.transform_file(vectors, folder / "other.npy", "int4")
    (folder / "home").mkdir()
    (folder / "home" / "thesis.txt").write_text("three years")
    for name, text in {
        "texts.txt": "\n".join(SENTENCES),
        "few.txt": "\n".join(SENTENCES[:9]),
        "same.txt": "a cat\n" * 300,
        "empty.txt": "\n",
        "table.csv": "a,b\n1,2\n",
        "fake.npy": "hello",
        "q.tsv": "1\t1\n",
    }.items():
        (folder / name).write_text(text)
    (folder / "latin.txt").write_bytes("café\n".encode("latin-1"))
    damaged = vectors.copy()
    damaged[7] = np.nan
    for name, rows in {"x": vectors, "few": vectors[:20], "nan": damaged, "narrow": vectors[:, :8]}.items():
        np.save(folder / f"{name}.npy", rows)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.component(name) for word, name in NEEDS.items() if word in command])
        for command in MISTAKES
    ],
)
def test_a_mistake_gets_one_line_and_writes_nothing(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    if " index " in command and not (folder / "index").exists():
        Index.build(Codes.load(folder / "codes.npy")).save(folder / "index")
    before = sorted(folder.rglob("*"))
    done = run(*shlex.split(command))
    assert done.exit_code == 2, done.output
    expected = MISTAKES[command].format(here=folder)
    said = " ".join(done.stderr.replace("│", " ").split())
    assert expected in said, said
    assert "Traceback" not in said
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 or "Usage: " in said
    assert sorted(folder.rglob("*")) == before, "something was written"


def test_there_are_at_least_forty():
    assert len(MISTAKES) >= 40
