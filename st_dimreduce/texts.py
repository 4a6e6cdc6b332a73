"""Reading of text files: texts, queries and their relevant documents, scored pairs."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DEFAULT_COLUMN = "text"
_SCORED_PAIR_COLUMNS = "sentence1", "sentence2", "score"
_LABELLED_PAIRS = "labelled pairs: the fields query and document, and negative if there is one"
_SCORED_PAIRS = "scored pairs: a .csv or .tsv file with the columns sentence1, sentence2 and score"


def check_texts(name: str, texts: object) -> None:
    """Check, before anything is encoded, that texts are a list of them, and that two differ.

    Args:
        name: What they are, such as ``"sentences"``.
        texts: The texts; an iterable that can be read but once is left alone.

    Raises:
        ValueError: If they are one string, or several that are all blank or the same.
    """
    if isinstance(texts, (str, bytes)):
        raise ValueError(f"{name} is a {type(texts).__name__}, {texts!r:.40}: expected a list of str")
    if not isinstance(texts, Sequence) or len(texts) < 2:
        return
    found: set[Any] = set()
    for text in texts:
        found.add(text.strip() if isinstance(text, str) else id(text))
        if len(found) > 1:
            return
    raise ValueError(all_same(name, len(texts), "blank" if found == {""} else "the same"))


def all_same(name: str, count: int, same: str = "the same") -> str:
    """Return what to say of texts that do not differ."""
    return f"all {count:,} {name} are {same}: give texts that differ, like those that will be encoded"


def read_texts(source: str, column: str | None = None, *, numbered: bool = False) -> list[str]:
    """Read texts from a file: one per line, or a column of a ``.jsonl`` or ``.csv`` file. Blank texts are left out.

    Args:
        source: The file's path, or ``"-"`` for standard input, one text per line.
        column: The field to read of ``.jsonl`` and ``.csv``. Defaults to ``"text"``.
        numbered: Whether another file refers to the texts by number, so that none may be left out. Defaults to False.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8, has no text or lacks the column, a line is not what its kind of file has, a
            text holds half of a surrogate pair, or is blank where they are numbered.
    """
    suffix = Path(source).suffix.lower()
    if column is not None and suffix not in (".jsonl", ".csv"):
        raise ValueError(f"a column ({column!r}) was named for {source}: only .jsonl and .csv files have columns")
    stream = _open(source, "texts, one per line, or - for standard input")
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    values = readers[suffix](stream, source, column or _DEFAULT_COLUMN) if suffix in readers else iter(stream)
    stripped = [text.strip() for text in values]
    texts = [text for text in stripped if text]
    if numbered and len(texts) < len(stripped):
        blank = stripped.index("") + 1
        raise ValueError(f"{source}: text {blank} is blank, but relevance refers to texts by number: take it out")
    if not texts:
        raise ValueError(f"{source} holds no text: expected one text per line, or a column of them")
    return texts


@dataclass(frozen=True)
class Question:
    """The texts that models are compared on.

    Attributes:
        documents: Texts to search.
        queries: Texts to search with; None where the documents search one another.
        relevant: For each query the rows of the documents it should find; None without labels.
        scored_pairs: Pairs of texts with a human score of their similarity; None where there are none.
        cloze: Whether the queries were made of the documents.
    """

    documents: list[str]
    queries: list[str] | None = None
    relevant: list[set[int]] | None = None
    scored_pairs: list[tuple[str, str, float]] | None = None
    cloze: bool = False


def read_question(
    texts: str | None,
    queries: str | None = None,
    relevant: str | None = None,
    scored_pairs: str | None = None,
    column: str | None = None,
) -> Question:
    """Read the texts of a comparison from files; without ``texts``, those of the scored pairs are searched.

    Args:
        texts: File of the texts to search.
        queries: File of the texts to search with.
        relevant: File of :func:`read_relevant`. Needs ``queries``.
        scored_pairs: File of :func:`read_scored_pairs`.
        column: As in :func:`read_texts`, of texts and queries.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If neither texts nor scored pairs are given, relevance without queries, or a file does not have
            what it should.
    """
    if texts is None and (scored_pairs is None or queries is not None):
        raise ValueError("no texts to search were given: give --texts FILE, or --pairs FILE alone")
    if relevant is not None and queries is None:
        raise ValueError(f"{relevant} says what queries should find, but no queries were given: give --queries FILE")
    scored = None if scored_pairs is None else read_scored_pairs(scored_pairs)
    if texts is None:
        both = [text for first, second, _ in scored or () for text in (first, second)]
        return Question(list(dict.fromkeys(both)), scored_pairs=scored)
    numbered = relevant is not None
    documents = read_texts(texts, column, numbered=numbered)
    asked = None if queries is None else read_texts(queries, column, numbered=numbered)
    rows = None if relevant is None else read_relevant(relevant, len(asked or ()), len(documents))
    return Question(documents, asked, rows, scored)


def read_relevant(source: str, queries: int, documents: int) -> list[set[int]]:
    """Read which documents each query should find: per line a query's number and a document's, both from 1.

    Further columns and blank lines are ignored.

    Args:
        source: The file's path.
        queries: Number of queries.
        documents: Number of documents.

    Returns:
        For each query the rows of its documents, from 0.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not two numbers in range.
    """
    relevant: list[set[int]] = [set() for _ in range(queries)]
    for line, text in enumerate(_open(source, "two numbers per line, of a query and of a document it should find"), 1):
        numbers = text.replace(",", " ").split()
        if not numbers:
            continue
        try:
            query, document = map(int, numbers[:2])
        except ValueError as error:
            expected = "the number of a query and that of a document it should find"
            raise ValueError(f"{source}, line {line}, is {text.strip()!r:.80}: expected {expected}") from error
        if not (1 <= query <= queries and 1 <= document <= documents):
            expected = f"1 to {queries} for the query, 1 to {documents} for the document"
            raise ValueError(f"{source}, line {line}, has {query} and {document}: expected {expected}")
        relevant[query - 1].add(document - 1)
    return relevant


def read_scored_pairs(source: str) -> list[tuple[str, str, float]]:
    """Read pairs of texts with a human score of their similarity (STS) from a ``.csv`` or ``.tsv`` file.

    The columns are ``sentence1``, ``sentence2`` and ``score``, among others and in any order; without a header the
    first three.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it lacks these columns, or a score is not a number.
    """
    stream = _open(source, _SCORED_PAIRS)
    # Tables separated by tabs are usually not quoted: a quotation mark in one is part of its text.
    tabs: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    given = _csv_rows(stream, source, **tabs if Path(source).suffix.lower() == ".tsv" else {})
    rows = [(number, row) for number, row in enumerate(given, 1) if row]
    places = [0, 1, 2]
    header = [name.strip().lower() for name in rows[0][1]] if rows else []
    if all(name in header for name in _SCORED_PAIR_COLUMNS):
        places = [_place(name, header, source) for name in _SCORED_PAIR_COLUMNS]
        rows = rows[1:]
    if not rows:
        raise ValueError(f"{source} holds no {_SCORED_PAIRS}")
    return [_scored_pair(row, places, f"{source}, row {number}") for number, row in rows]


def read_labelled_pairs(source: str) -> list[tuple[str, ...]]:
    """Read labelled pairs of a query and the document it should find, or triples with one that it should not find.

    Args:
        source: A ``.jsonl``, ``.csv`` or ``.tsv`` file with the fields ``query`` and ``document`` (or ``anchor`` and
            ``positive``), and ``negative`` if there is one; of a table without a header the first two or three columns.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row lacks a field, or there is none.
    """
    stream, suffix = _open(source, _LABELLED_PAIRS), Path(source).suffix.lower()
    rows: Iterator[tuple[int, list[Any]]]
    if suffix == ".jsonl":
        objects = [(number, row if isinstance(row, dict) else {}) for number, row in _objects(stream, source)]
        names = _pair_names(list(objects[0][1]) if objects else [])
        rows = ((number, [row.get(name) for name in names]) for number, row in objects)
    else:
        tabs: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {}
        given = [(number, row) for number, row in enumerate(_csv_rows(stream, source, **tabs), 1) if row]
        header = [name.strip().lower() for name in given[0][1]] if given else []
        names = _pair_names(header)
        places = [header.index(name) for name in names] if names else range(min(len(header), 3))
        rows = ((number, [row[at] if at < len(row) else None for at in places]) for number, row in given[bool(names) :])
    pairs = []
    for number, row in rows:
        if len(row) not in (2, 3) or not all(isinstance(text, str) and text.strip() for text in row):
            raise ValueError(f"{source}, row {number}, is {row!r:.80}: expected {_LABELLED_PAIRS}")
        pairs.append(tuple(row))
    if not pairs:
        raise ValueError(f"{source} holds no {_LABELLED_PAIRS}")
    return pairs


def _pair_names(fields: list[str]) -> list[str]:
    """Return the fields of a labelled pair among those of a file; none if it does not name them."""
    for pair in (("query", "document"), ("anchor", "positive")):
        if set(pair) <= set(fields):
            return [*pair, *(["negative"] if "negative" in fields else [])]
    return []


def _scored_pair(row: list[str], places: list[int], where: str) -> tuple[str, str, float]:
    try:
        first, second, score = (row[place] for place in places)
        return first, second, float(score)
    except (IndexError, ValueError) as error:
        raise ValueError(f"{where}, is {row!r:.80}: expected {_SCORED_PAIRS}") from error


def _open(source: str, expected: str) -> io.StringIO:
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return io.StringIO(content.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 (byte {error.start}): expected a UTF-8 text file") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(f"no file {source}: give a file of {expected}") from error


def _objects(stream: io.StringIO, source: str) -> Iterator[tuple[int, Any]]:
    """Yield what each line of a .jsonl file holds, with its number."""
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError alone for a number of 5,000 digits
            raise ValueError(f"{source}, line {number}, is not JSON: expected one object per line") from error


def _read_jsonl(stream: io.StringIO, source: str, column: str) -> Iterator[str]:
    for number, row in _objects(stream, source):
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            there = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{source}, line {number}, has no text in {column!r}: it holds {there}; name one of these")
        try:
            row[column].encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{source}, line {number}, holds half of a surrogate pair, which is no text: expected Unicode"
            ) from error
        yield row[column]


def _read_csv(stream: io.StringIO, source: str, column: str) -> Iterator[str]:
    rows = _csv_rows(stream, source)
    header = next((row for row in rows if row), [])
    place = _place(column, header, source)
    for row in rows:
        if row:
            yield row[place] if place < len(row) else ""


def _place(column: str, header: list[str], source: str) -> int:
    if header.count(column) != 1:
        how_many = f"{header.count(column)} columns" if column in header else "no column"
        raise ValueError(f"{source} has {how_many} {column!r}: its columns are {', '.join(header)}; name one of these")
    return header.index(column)


def _csv_rows(stream: io.StringIO, source: str, **options: Any) -> Iterator[list[str]]:
    reader = csv.reader(stream, **options)
    try:
        yield from reader
    except csv.Error as error:
        remedy = (
            f"; a text of more than {csv.field_size_limit():,} characters needs .jsonl" if "limit" in str(error) else ""
        )
        raise ValueError(f"{source}, line {reader.line_num}, is not CSV: {error}{remedy}") from error
