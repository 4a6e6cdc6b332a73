from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from st_dimreduce.texts import Question, read_question, read_relevant, read_scored_pairs, read_texts


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
        ("a.csv", b"text,text\na,b\n", None, "has 2 columns 'text': its columns are text, text; name one"),
        (
            "a.csv",
            b"text\n" + b"a" * 131_073,
            None,
            "line 2, is not CSV: .* of more than 131,072 characters needs .jsonl",
        ),
        ("a.jsonl", b'{"text": "a\\ud800b"}\n', None, "line 1, holds half of a surrogate pair, which is not text"),
        ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", None, "line 1, is not JSON"),
    ],
)
def test_bad_files(tmp_path, name, content, column, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_texts(str(tmp_path / name), column)


def test_whole_characters_beyond_the_basic_plane_are_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\ud83d\\ude00"}\n')
    assert read_texts(str(tmp_path / "a.jsonl")) == ["\U0001f600"]


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no file .*: give a file of texts"):
            read_texts(str(path))


IDS = ["q1", "q2", "q3"], ["d1", "d 2", "3"]


@pytest.mark.parametrize(
    "content",
    [
        "query-id\tcorpus-id\tscore\nq1\td 2\t2\nq1\t3\t1\nq1\td1\t0\n\nq2\td1\t1\n",
        "q1\td 2\t2\nq1\t3\t1.0\nq2\td1\t1\nq2\td1\t1\n",
        "q1\t0\td 2\t2\r\nq1\t0\t3\t1\r\nq2\t0\td1\t1\r\nq2\t0\tlacking\t-1\r\n",
    ],
)
def test_qrels_of_beir_and_trec(tmp_path, content):
    (tmp_path / "qrels.tsv").write_text(content, newline="")
    graded = {"q1": {"d 2": 2.0, "3": 1.0}, "q2": {"d1": 1.0}, "q3": {}}
    assert read_relevant(str(tmp_path / "qrels.tsv"), *IDS) == graded


@pytest.mark.parametrize("content", ["1 2\n\n2,1\n1\t3\n", "1 0 2 1\n2 0 1 1\n1 0 3 1\n", "1, 2, 1\n2, 1, 1\n1,3,1"])
def test_qrels_between_spaces_and_commas(tmp_path, content):
    (tmp_path / "r.txt").write_text(content)
    ids = ["1", "2", "3"]
    assert read_relevant(str(tmp_path / "r.txt"), ids, ids) == {"1": {"2": 1.0, "3": 1.0}, "2": {"1": 1.0}, "3": {}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q1\n", "line 1, is 'q1': expected per line the id of a query, that of a document and a grade"),
        ("q1\td1\thigh", r"line 1, is 'q1\\td1\\thigh': expected per line"),
        ("q1\td1\tnan", "line 1, is"),
        ("q1 0 d1 1 run", "line 1, is 'q1 0 d1 1 run'"),
        ("q1\td9\t1", "line 1, names the document 'd9': expected one of the 3 ids from 'd1' to '3', or a grade of 0"),
        ("q1\td1\t1\nq1\td1\t2", "line 2, gives document 'd1' the grade 2 for query 'q1', and an earlier line 1"),
    ],
)
def test_bad_qrels(tmp_path, content, message):
    (tmp_path / "r.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_relevant(str(tmp_path / "r.txt"), *IDS)


def beir(folder, qrels):
    """A folder as BEIR has it; one text has no title, one neither."""
    (folder / "corpus.jsonl").write_text(
        '{"_id": "d1", "title": "Cats", "text": "They sleep."}\n{"_id": "d2", "title": "", "text": "Dogs run."}\n'
        '{"_id": "d3", "title": "", "text": ""}\n{"_id": 4, "text": "Birds sing."}\n'
    )
    (folder / "queries.jsonl").write_text(
        '{"_id": "q1", "text": "who sleeps"}\n{"_id": "q2", "text": "who runs"}\n{"_id": "q3", "text": "who sings"}\n'
    )
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return [str(folder / name) for name in ("corpus.jsonl", "queries.jsonl", "qrels.tsv")]


def test_a_folder_of_beir(tmp_path):
    files = beir(tmp_path, "q3\t4\t1\nq3\td1\t2\nq1\td1\t1\n")
    with pytest.warns(UserWarning, match=r"^1 of 3 queries have no relevant document in .*: they are left out$"):
        question = read_question(*files)
    assert question.documents == ["Cats They sleep.", "Dogs run.", "Birds sing."]
    assert question.queries == ["who sleeps", "who sings"]
    assert question.relevant == [{0: 1.0}, {2: 1.0, 0: 2.0}]
    assert read_texts(files[0]) == question.documents, "a fit reads the same texts as a comparison"


def test_ids_that_lead_nowhere(tmp_path):
    files = beir(tmp_path, "q1\td1\t1\nq2\td2\t1\nq3\t4\t1\nq8\td1\t1\nq9\td1\t1\n")
    with pytest.warns(
        UserWarning, match="has 2 queries, such as 'q8', that are not among those given, one of the 3 ids"
    ):
        read_question(*files)
    with pytest.raises(ValueError, match="names the document 'd3': expected one of the 3 ids from 'd1' to '4'"):
        read_question(*beir(tmp_path, "q1\td3\t1\n"))
    with pytest.raises(ValueError, match="names no relevant document of any query in"):
        read_question(*beir(tmp_path, "q1\td1\t0\n"))
    files = beir(tmp_path, "q1\td1\t1\n")
    Path(files[1]).write_text('{"_id": "q1", "text": "a"}\n{"_id": "q1", "text": "b"}\n')
    with pytest.raises(ValueError, match=r"queries.jsonl has two texts with the _id 'q1'"):
        read_question(*files)
    Path(files[1]).write_text('{"_id": "q1", "text": "a"}\n{"text": "b"}\n')
    with pytest.raises(ValueError, match=r"queries.jsonl: text 2 has no _id, others have"):
        read_question(*files)


def test_a_blank_text_is_refused_where_numbers_count(tmp_path):
    for name, content in (("t", "a\n\nb\n"), ("q", "a\n"), ("r", "1 2\n")):
        Path(tmp_path, name).write_text(content)
    texts, queries, relevant = (str(tmp_path / name) for name in "tqr")
    with pytest.raises(ValueError, match="text 2 is blank"):
        read_question(texts, queries, relevant)
    assert read_question(texts, queries).documents == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", 'score,genre,sentence2,sentence1\n2.5,x,b,"a, c"\n'),
        ("p.tsv", "genre\tscore\tsentence1\tsentence2\nx\t2.5\ta, c\tb\n"),
        ("p.csv", '"a, c",b,2.5\n'),
    ],
)
def test_columns_of_scored_pairs(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_scored_pairs(str(tmp_path / name)) == [("a, c", "b", 2.5)]


def test_a_quotation_mark_between_tabs_is_text(tmp_path):
    (tmp_path / "p.tsv").write_text('"a\tb"\t1\nc\td\t2\n')
    assert read_scored_pairs(str(tmp_path / "p.tsv")) == [('"a', 'b"', 1.0), ("c", "d", 2.0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no scored pairs: a .csv or .tsv file with the columns sentence1, sentence2 and score"),
        ("sentence1,sentence2,score\n", "holds no scored pairs"),
        ("a,b,1\n\nc,d,high\n", r"row 3, is \['c', 'd', 'high'\]: expected scored pairs"),
        ("a,b\n", r"row 1, is \['a', 'b'\]: expected scored pairs"),
        ("a,b,1\n" + "c" * 131_073 + ",d,2\n", "line 2, is not CSV: field larger than field limit"),
        ("score,sentence1,sentence2,score\n1,a,b,2\n", "has 2 columns 'score'"),
    ],
)
def test_bad_scored_pairs(tmp_path, content, message):
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_scored_pairs(str(tmp_path / "p.csv"))


def test_without_texts_those_of_the_scored_pairs_are_searched(tmp_path):
    (tmp_path / "p.csv").write_text("a,b,1\nb,c,2\n")
    pairs = str(tmp_path / "p.csv")
    assert read_question(None, scored_pairs=pairs) == Question(
        ["a", "b", "c"], scored_pairs=[("a", "b", 1.0), ("b", "c", 2.0)]
    )
    with pytest.raises(ValueError, match="no texts to search were given"):
        read_question(None, queries=pairs, scored_pairs=pairs)
