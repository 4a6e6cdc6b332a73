"""Texts from a file."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

_DEFAULT_COLUMN = "text"


def read_texts(source: str, column: str | None = None) -> list[str]:
    """Read texts from a file: one a line, or a column of a ``.jsonl`` or ``.csv`` file. Blank texts are left out.

    Args:
        source: The file's path, or ``"-"`` for standard input, one text a line.
        column: The field to read of ``.jsonl`` and ``.csv``. Defaults to ``"text"``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not UTF-8, holds no text or not the column, or a line is not what its kind of file holds.
    """
    suffix = Path(source).suffix.lower()
    if column is not None and suffix not in (".jsonl", ".csv"):
        raise ValueError(f"a column ({column!r}) was named for {source}: only .jsonl and .csv files have columns")
    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        stream = io.StringIO(content.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 (byte {error.start}): expected a UTF-8 text file") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(
            f"no file {source}: give a file of texts, one a line, or - for standard input"
        ) from error
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    values = readers[suffix](stream, source, column or _DEFAULT_COLUMN) if suffix in readers else iter(stream)
    texts = [text.strip() for text in values if text.strip()]
    if not texts:
        raise ValueError(f"{source} holds no text: expected one text a line, or a column of them")
    return texts


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
