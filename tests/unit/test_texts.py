from __future__ import annotations

import gc
import io
import sys

import pytest

from st_dimreduce.apps.docstrings import docstring_pairs, package_pairs
from st_dimreduce.texts import read_texts


@pytest.mark.parametrize(
    ("name", "content", "column"),
    [
        ("a.txt", "one\n\n  two \r\ndrei ü", None),
        ("a.txt", "\ufeffone\ntwo\ndrei ü\n", None),
        ("a.jsonl", '{"text": "one"}\n\n{"text": "two", "id": 4}\n{"text": "drei ü"}\n{"text": " "}\n', None),
        ("a.jsonl", '{"body": "one"}\n{"body": "two"}\n{"body": "drei ü"}', "body"),
        ("a.csv", 'id,text\n1,one\n2,"two"\n3,drei ü\n', None),
        ("A.CSV", "body,id\none,1\ntwo,2\ndrei ü,3\n,4\n", "body"),
    ],
)
def test_reads_what_is_there(tmp_path, name, content, column):
    (tmp_path / name).write_bytes(content.encode())
    assert read_texts(str(tmp_path / name), column) == ["one", "two", "drei ü"]


def test_csv_cells_may_hold_line_breaks(tmp_path):
    (tmp_path / "a.csv").write_text('text\n"one\ntwo"\n')
    assert read_texts(str(tmp_path / "a.csv")) == ["one\ntwo"]


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("one\nüç\n".encode())))
    assert read_texts("-") == ["one", "üç"]


@pytest.mark.parametrize(
    ("name", "content", "column", "message"),
    [
        ("a.txt", b"", None, "holds no text"),
        ("a.txt", b" \n\n", None, "holds no text"),
        ("a.txt", b"caf\xe9\n", None, r"is not UTF-8 \(byte 3\)"),
        ("a.txt", b"one", "text", "only .jsonl and .csv files have columns"),
        ("a.jsonl", b"one\n", None, "line 1, is not JSON"),
        ("a.jsonl", b'{"text": "one"}\n[1]\n', None, "line 2, has no text in 'text': it holds list"),
        ("a.jsonl", b'{"title": "one", "body": 3}\n', "body", "has no text in 'body': it holds title, body; name one"),
        ("a.csv", b"id,title\n1,one\n", None, "has no column 'text': its columns are id, title; name one"),
        ("a.csv", b"", None, "has no column 'text'"),
    ],
)
def test_bad_files(tmp_path, name, content, column, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_texts(str(tmp_path / name), column)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no file .*: give a file of texts"):
            read_texts(str(path))


def test_docstring_pairs():
    pairs = docstring_pairs(300, seed=1)
    assert pairs == docstring_pairs(300, seed=1)
    assert pairs != docstring_pairs(300, seed=2)
    queries, documents = zip(*pairs, strict=True)
    assert len(set(queries)) == len(set(documents)) == 300
    assert not any(query in document for query, document in pairs), "a query that stands in its document is no question"
    assert not any("Parameters ---" in document or ">>>" in document for document in documents)
    assert len(docstring_pairs()) > 5000
    with pytest.raises(ValueError, match="0 docstring pairs were asked for"):
        docstring_pairs(0)


def test_a_definition_is_found_in_any_block(tmp_path, monkeypatch):
    blocks = ["if 0:", "if 1:\n    pass\nelse:", "try:\n    pass\nexcept OSError:", "try:\n    pass\nfinally:"]
    blocks += ["match 0:\n    case 0:", "with x:", "for x in y:", "class A:", "async def f():", "def f():"]
    definition = 'def g(): "Says what number {} does. It says so in no fewer words than eight of them."'
    sources = [f"{block}\n        {definition.format(number)}\n" for number, block in enumerate(blocks)]
    (tmp_path / "docstringed").mkdir()
    (tmp_path / "docstringed" / "__init__.py").write_text("".join(sources))
    (tmp_path / "docstringed" / "newer.py").write_text("a syntax of tomorrow")
    monkeypatch.syspath_prepend(tmp_path)
    expected = {f"Says what number {number} does." for number in range(len(blocks))}
    assert {sentence for sentence, _ in package_pairs("docstringed")} == expected
    assert gc.isenabled()
