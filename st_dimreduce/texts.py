"""Texts from a file."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DEFAULT_COLUMN = "text"
_PAIR_COLUMNS = "sentence1", "sentence2", "score"


def read_texts(source: str, column: str | None = None, *, numbered: bool = False) -> list[str]:
    """Read texts from a file: one a line, or a column of a ``.jsonl`` or ``.csv`` file. Blank texts are left out.

    Args:
        source: The file's path, or ``"-"`` for standard input, one text a line.
        column: The field to read of ``.jsonl`` and ``.csv``. Defaults to ``"text"``.
        numbered: Whether another file calls the texts by their numbers, so that none may be left out. Defaults to
            False.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8, holds no text or not the column, a line is not what its kind of file holds, or
            a text is blank where they are numbered.
    """
    suffix = Path(source).suffix.lower()
    if column is not None and suffix not in (".jsonl", ".csv"):
        raise ValueError(f"a column ({column!r}) was named for {source}: only .jsonl and .csv files have columns")
    stream = _open(source, "texts, one a line, or - for standard input")
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    values = readers[suffix](stream, source, column or _DEFAULT_COLUMN) if suffix in readers else iter(stream)
    stripped = [text.strip() for text in values]
    texts = [text for text in stripped if text]
    if numbered and len(texts) < len(stripped):
        blank = stripped.index("") + 1
        raise ValueError(f"{source}: text {blank} is blank, and texts are called by their numbers here: take it out")
    if not texts:
        raise ValueError(f"{source} holds no text: expected one text a line, or a column of them")
    return texts


@dataclass(frozen=True)
class Question:
    """What models are asked in a comparison.

    Attributes:
        documents: Texts to search.
        queries: Texts to search with; None where the documents search one another.
        relevant: For each query the rows of the documents it should find; None where nobody says.
        pairs: Pairs of texts with a score of how alike people find them; None where there are none.
    """

    documents: list[str]
    queries: list[str] | None = None
    relevant: list[set[int]] | None = None
    pairs: list[tuple[str, str, float]] | None = None


def read_question(
    texts: str | None,
    queries: str | None = None,
    relevant: str | None = None,
    pairs: str | None = None,
    column: str | None = None,
) -> Question:
    """Read what a comparison is about from files; without ``texts``, those of the pairs are searched.

    Args:
        texts: File of the texts to search.
        queries: File of the texts to search with.
        relevant: File of :func:`read_relevant`. Needs ``queries``.
        pairs: File of :func:`read_pairs`.
        column: As in :func:`read_texts`, of texts and queries.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If neither texts nor pairs are given, relevance without queries, or a file does not hold what it
            should.
    """
    if texts is None and (pairs is None or queries is not None):
        raise ValueError("no texts to search were given: give --texts FILE, or --pairs FILE alone")
    if relevant is not None and queries is None:
        raise ValueError(f"{relevant} says what queries should find, but no queries were given: give --queries FILE")
    numbered, scored = relevant is not None, None if pairs is None else read_pairs(pairs)
    if texts is None:
        return Question(list(dict.fromkeys(text for *sides, _ in scored or () for text in sides)), pairs=scored)
    documents = read_texts(texts, column, numbered=numbered)
    asked = None if queries is None else read_texts(queries, column, numbered=numbered)
    rows = None if relevant is None else read_relevant(relevant, len(asked or ()), len(documents))
    return Question(documents, asked, rows, scored)


def read_relevant(source: str, queries: int, documents: int) -> list[set[int]]:
    """Read which texts each query should find: a line a pair, the query's number and the text's, both from 1.

    Further columns are left unread, as are blank lines.

    Args:
        source: The file's path.
        queries: How many queries there are.
        documents: How many texts there are.

    Returns:
        For each query the rows of its texts, from 0.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not two numbers in range.
    """
    relevant: list[set[int]] = [set() for _ in range(queries)]
    for line, text in enumerate(_open(source, "two numbers a line, of a query and of a text it should find"), 1):
        numbers = text.replace(",", " ").split()
        if not numbers:
            continue
        try:
            query, document = map(int, numbers[:2])
        except ValueError as error:
            asked = "the number of a query and that of a text it should find"
            raise ValueError(f"{source}, line {line}, is {text.strip()!r:.80}: expected {asked}") from error
        if not (1 <= query <= queries and 1 <= document <= documents):
            asked = f"1 to {queries} for the query, 1 to {documents} for the text"
            raise ValueError(f"{source}, line {line}, has {query} and {document}: expected {asked}")
        relevant[query - 1].add(document - 1)
    return relevant


def read_pairs(source: str) -> list[tuple[str, str, float]]:
    """Read pairs of texts with a score of how alike people find them, from a ``.csv`` or ``.tsv`` file.

    The columns are ``sentence1``, ``sentence2`` and ``score``, among others or in another order; without a header the
    first three.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no such columns, or a score is no number.
    """
    asked = "pairs: a .csv or .tsv file with sentence1, sentence2 and score"
    tabs = Path(source).suffix.lower() == ".tsv"
    # Tables separated by tabs are not quoted as a rule: a quotation mark in one is part of its text.
    style: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    rows = [row for row in csv.reader(_open(source, asked), **style) if row]
    header = [name.strip().lower() for name in rows[0]] if rows else []
    named = all(name in header for name in _PAIR_COLUMNS)
    places = [header.index(name) for name in _PAIR_COLUMNS] if named else [0, 1, 2]
    if not rows[named:]:
        raise ValueError(f"{source} holds no {asked}")
    return [_pair(row, places, f"{source}, row {number}", asked) for number, row in enumerate(rows[named:], 1 + named)]


def _pair(row: list[str], places: list[int], where: str, asked: str) -> tuple[str, str, float]:
    try:
        one, other, score = (row[place] for place in places)
        return one, other, float(score)
    except (IndexError, ValueError) as error:
        raise ValueError(f"{where}, is {row!r:.80}: expected {asked}") from error


def _open(source: str, asked: str) -> io.StringIO:
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return io.StringIO(content.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 (byte {error.start}): expected a UTF-8 text file") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(f"no file {source}: give a file of {asked}") from error


def _read_jsonl(stream: io.StringIO, source: str, column: str) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{source}, line {number}, is not JSON: expected one object a line") from error
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            there = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{source}, line {number}, has no text in {column!r}: it holds {there}; name one of these")
        yield row[column]


def _read_csv(stream: io.StringIO, source: str, column: str) -> Iterator[str]:
    reader = csv.DictReader(stream)
    try:
        if column not in (reader.fieldnames or []):
            there = ", ".join(reader.fieldnames or [])
            raise ValueError(f"{source} has no column {column!r}: its columns are {there}; name one of these")
        for row in reader:
            yield row[column] or ""
    except csv.Error as error:
        raise ValueError(f"{source}, line {reader.line_num}, is not CSV: {error}") from error
