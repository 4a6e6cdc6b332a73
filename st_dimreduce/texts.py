"""Reading of text files: texts, queries and their relevant documents, scored pairs."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_dimreduce.errors import UserError

_DEFAULT_COLUMN = "text"
_SCORED_PAIR_COLUMNS = "sentence1", "sentence2", "score"
_LABELLED_PAIRS = "labelled pairs: the fields query and document, and negative if there is one"
_NO_TEXT = "holds no text: expected one text per line, or a column of them"
_QRELS = "per line the id of a query, that of a document and a grade (BEIR), or four columns as TREC has them"
_SCORED_PAIRS = "scored pairs: a .csv or .tsv file with the columns sentence1, sentence2 and score"


def check_texts(name: str, texts: object) -> None:
    """Check, before anything is encoded, that texts are a list of them, and that two differ.

    Args:
        name: What they are, such as ``"sentences"``.
        texts: The texts; an iterator is not checked.

    Raises:
        UserError: If they are one string, or several that are all blank or the same.
    """
    if isinstance(texts, (str, bytes)):
        raise UserError(f"{name} is a {type(texts).__name__}, {texts!r:.40}: expected a list of str")
    if not isinstance(texts, Sequence) or len(texts) < 2:
        return
    found: set[Any] = set()
    for text in texts:
        found.add(text.strip() if isinstance(text, str) else id(text))
        if len(found) > 1:
            return
    raise UserError(all_same(name, len(texts), "blank" if found == {""} else "the same"))


def all_same(name: str, count: int, same: str = "the same") -> str:
    """Return the message for texts that do not differ."""
    return f"all {count:,} {name} are {same}: give texts that differ, like those that will be encoded"


def read_texts(source: str, column: str | None = None) -> list[str]:
    """Read texts from a file: one per line, or a column of a ``.jsonl`` or ``.csv`` file. Blank texts are skipped.

    In a ``.jsonl`` file as BEIR's ``corpus.jsonl``, whose objects have an ``_id``, a ``title`` comes before the text.

    Args:
        source: The file's path, or ``"-"`` for standard input, one text per line.
        column: The field to read of ``.jsonl`` and ``.csv``. Defaults to ``"text"``.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If it is not UTF-8, has no text or lacks the column, a line does not parse, or a text holds half of
            a surrogate pair.
    """
    texts = [text for _, text in _read(source, column) if text]
    if not texts:
        raise UserError(f"{source} {_NO_TEXT}")
    return texts


def _read(source: str, column: str | None) -> list[tuple[str | None, str]]:
    """Return the texts of a file, blank ones included, with their ids, None where they have none."""
    suffix = Path(source).suffix.lower()
    if column is not None and suffix not in (".jsonl", ".csv"):
        raise UserError(f"a column ({column!r}) was named for {source}: only .jsonl and .csv files have columns")
    stream = _open(source, "texts, one per line, or - for standard input")
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    if suffix in readers:
        return [(own, text.strip()) for own, text in readers[suffix](stream, source, column or _DEFAULT_COLUMN)]
    return [(None, line.strip()) for line in stream]


@dataclass(frozen=True)
class Question:
    """The texts that models are compared on.

    Attributes:
        documents: Texts to search.
        queries: Texts to search with; None where the documents search one another.
        relevant: For each query the rows of the documents it should find, or their grades by row; None without labels.
        scored_pairs: Pairs of texts with a human score of their similarity; None where there are none.
        cloze: Whether the queries were made of the documents.
    """

    documents: list[str]
    queries: list[str] | None = None
    relevant: Sequence[Collection[int] | Mapping[int, float]] | None = None
    scored_pairs: list[tuple[str, str, float]] | None = None
    cloze: bool = False


def digest_of(texts: Iterable[str]) -> str:
    """Return the SHA-256 of texts in their order, to recognise them later."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


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
        UserError: If neither texts nor scored pairs are given, relevance is given without queries, or a file does not
            parse.
    """
    if texts is None and (scored_pairs is None or queries is not None):
        raise UserError("no texts to search were given: give --texts FILE, or --pairs FILE alone")
    if relevant is not None and queries is None:
        raise UserError(f"{relevant} says what queries should find, but no queries were given: give --queries FILE")
    scored = None if scored_pairs is None else read_scored_pairs(scored_pairs)
    if texts is None:
        both = [text for first, second, _ in scored or () for text in (first, second)]
        return Question(list(dict.fromkeys(both)), scored_pairs=scored)
    if relevant is None or queries is None:
        return Question(
            read_texts(texts, column), None if queries is None else read_texts(queries, column), None, scored
        )
    documents, asked = _identified(texts, column), _identified(queries, column)
    graded = read_relevant(relevant, asked, documents)
    if not any(graded.values()):
        raise UserError(f"{relevant} names no relevant document of any query in {queries}: expected {_QRELS}")
    rows = {id_: row for row, id_ in enumerate(documents)}
    judged = [id_ for id_ in asked if graded[id_]]
    if len(judged) < len(asked):
        problem = f"{len(asked) - len(judged):,} of {len(asked):,} queries have no relevant document in {relevant}"
        warnings.warn(f"{problem}: they are left out", stacklevel=2)
    return Question(
        list(documents.values()),
        [asked[id_] for id_ in judged],
        [{rows[document]: grade for document, grade in graded[id_].items()} for id_ in judged],
        scored,
    )


def _identified(source: str, column: str | None) -> dict[str, str]:
    """Return the texts of a file by their ids; by their numbers from 1, as strings, where they have none.

    Blank texts with an id are skipped.
    """
    given = _read(source, column)
    named = any(id_ is not None for id_, _ in given)
    texts: dict[str, str] = {}
    for number, (own, text) in enumerate(given, 1):
        id_ = own if named else str(number)
        if id_ is None:
            raise UserError(f"{source}: text {number} has no _id, others have: give each one")
        if id_ in texts:
            raise UserError(f"{source} has two texts with the _id {id_!r:.80}: expected each to have its own")
        if text:
            texts[id_] = text
        elif not named:
            raise UserError(f"{source}: text {number} is blank, but relevance refers to texts by number: take it out")
    if not texts:
        raise UserError(f"{source} {_NO_TEXT}")
    return texts


def read_relevant(source: str, queries: Collection[str], documents: Collection[str]) -> dict[str, dict[str, float]]:
    """Read which documents each query should find, and how relevant they are (qrels).

    As BEIR has them, the id of a query, that of a document and a grade per line, below a header or not; as TREC has
    them, with a second column that is ignored; or the two ids alone, for a grade of 1. Between them are tabs, spaces
    or commas. Documents of grade 0 or less are not relevant. Blank lines are ignored.

    Args:
        source: The file's path.
        queries: Ids of the queries; lines about others are skipped, with a warning.
        documents: Ids of the documents.

    Returns:
        For each query the grades of its relevant documents, by id.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If a line is of another form, names a document that is not there, or contradicts an earlier one.
    """
    relevant: dict[str, dict[str, float]] = {id_: {} for id_ in queries}
    known, unknown, grades = set(documents), dict[str, None](), dict[tuple[str, str], float]()
    for line, text in enumerate(_open(source, _QRELS), 1):
        fields = _fields(text)
        if not fields or (line == 1 and fields[:2] == ["query-id", "corpus-id"]):
            continue
        where = f"{source}, line {line}"
        query, document, grade = _judgement(fields, text, where)
        if grades.setdefault((query, document), grade) != grade:
            before = grades[query, document]
            raise UserError(
                f"{where}, gives document {document!r:.80} the grade {grade:g} for query {query!r:.80}, and an earlier "
                f"line {before:g}: keep one"
            )
        if query not in relevant:
            unknown[query] = None
        elif grade > 0 and document not in known:
            raise UserError(
                f"{where}, names the document {document!r:.80}: expected {_ids(documents)}, or a grade of 0"
            )
        elif grade > 0:
            relevant[query][document] = grade
    if unknown:
        warnings.warn(
            f"{source} has {len(unknown):,} queries, such as {next(iter(unknown))!r:.80}, that are not among those "
            f"given, {_ids(queries)}: they are left out",
            stacklevel=3,
        )
    return relevant


def _ids(known: Collection[str]) -> str:
    """Describe the known ids, for a message."""
    first, *_, last = (next(iter(known)), *known)
    return f"one of the {len(known):,} ids from {first!r:.40} to {last!r:.40}"


def _fields(line: str) -> list[str]:
    """Split a line of a qrels file at tabs, else at commas if there are any, else at spaces."""
    if "\t" in line:
        return [field.strip() for field in line.split("\t")]
    fields = line.split()
    commas = len(fields) == 1 or any(field.endswith(",") for field in fields)
    return line.replace(",", " ").split() if commas else fields


def _judgement(fields: list[str], line: str, where: str) -> tuple[str, str, float]:
    """Return the query, the document and the grade of a line."""
    wanted = {2: (0, 1), 3: (0, 1, 2), 4: (0, 2, 3)}.get(len(fields), ())
    given = [fields[place] for place in wanted]
    try:
        query, document, grade = given[0], given[1], float(given[2]) if len(given) == 3 else 1.0
        if query and document and math.isfinite(grade):
            return query, document, grade
    except (IndexError, ValueError):
        pass
    raise UserError(f"{where}, is {line.strip()!r:.80}: expected {_QRELS}")


def read_scored_pairs(source: str) -> list[tuple[str, str, float]]:
    """Read pairs of texts with a human score of their similarity (STS) from a ``.csv`` or ``.tsv`` file.

    The columns are ``sentence1``, ``sentence2`` and ``score``, among others and in any order; without a header the
    first three.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If it lacks these columns, or a score is not a number.
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
        raise UserError(f"{source} holds no {_SCORED_PAIRS}")
    return [_scored_pair(row, places, f"{source}, row {number}") for number, row in rows]


def read_labelled_pairs(source: str) -> list[tuple[str, ...]]:
    """Read labelled pairs of a query and the document it should find, or triples with one that it should not find.

    Args:
        source: A ``.jsonl``, ``.csv`` or ``.tsv`` file with the fields ``query`` and ``document`` (or ``anchor`` and
            ``positive``), and ``negative`` if there is one; of a table without a header the first two or three columns.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If a row lacks a field, or there is none.
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
            raise UserError(f"{source}, row {number}, is {row!r:.80}: expected {_LABELLED_PAIRS}")
        pairs.append(tuple(row))
    if not pairs:
        raise UserError(f"{source} holds no {_LABELLED_PAIRS}")
    return pairs


def _pair_names(fields: list[str]) -> list[str]:
    """Return the fields of a labelled pair among those of a file; an empty list if there are none."""
    for pair in (("query", "document"), ("anchor", "positive")):
        if set(pair) <= set(fields):
            return [*pair, *(["negative"] if "negative" in fields else [])]
    return []


def _scored_pair(row: list[str], places: list[int], where: str) -> tuple[str, str, float]:
    try:
        first, second, score = (row[place] for place in places)
        return first, second, float(score)
    except (IndexError, ValueError) as error:
        raise UserError(f"{where}, is {row!r:.80}: expected {_SCORED_PAIRS}") from error


def _open(source: str, expected: str) -> io.StringIO:
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        return io.StringIO(content.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not UTF-8 (byte {error.start}): expected a UTF-8 text file") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(f"no file {source}: give a file of {expected}") from error


def _objects(stream: io.StringIO, source: str) -> Iterator[tuple[int, Any]]:
    """Yield the value of each line of a .jsonl file, with the line number."""
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError alone for a number of 5,000 digits
            raise UserError(f"{source}, line {number}, is not JSON: expected one object per line") from error


def _read_jsonl(stream: io.StringIO, source: str, column: str) -> Iterator[tuple[str | None, str]]:
    for number, row in _objects(stream, source):
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            there = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            raise UserError(f"{source}, line {number}, has no text in {column!r}: it holds {there}; name one of these")
        try:
            row[column].encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{source}, line {number}, holds half of a surrogate pair, which is not text: expected Unicode"
            ) from error
        own = row.get("_id")
        if own is not None and column == _DEFAULT_COLUMN and isinstance(row.get("title"), str):
            yield str(own), f"{row['title']} {row[column]}"  # what BEIR encodes of a document
        else:
            yield None if own is None else str(own), row[column]


def _read_csv(stream: io.StringIO, source: str, column: str) -> Iterator[tuple[str | None, str]]:
    rows = _csv_rows(stream, source)
    header = next((row for row in rows if row), [])
    place = _place(column, header, source)
    for row in rows:
        if row:
            yield None, row[place] if place < len(row) else ""


def _place(column: str, header: list[str], source: str) -> int:
    if header.count(column) != 1:
        how_many = f"{header.count(column)} columns" if column in header else "no column"
        raise UserError(f"{source} has {how_many} {column!r}: its columns are {', '.join(header)}; name one of these")
    return header.index(column)


def _csv_rows(stream: io.StringIO, source: str, **options: Any) -> Iterator[list[str]]:
    reader = csv.reader(stream, **options)
    try:
        yield from reader
    except csv.Error as error:
        remedy = (
            f"; a text of more than {csv.field_size_limit():,} characters needs .jsonl" if "limit" in str(error) else ""
        )
        raise UserError(f"{source}, line {reader.line_num}, is not CSV: {error}{remedy}") from error
