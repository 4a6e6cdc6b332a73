"""Reduced vectors beside the full ones in a database: what pgvector, Qdrant and DuckDB have in common.

How far a migration is stands in the database alone: a vector without codes beside it is still to be reduced. So the
same call continues after an interruption, and takes what was added since. Full vectors are read and never changed.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import numpy as np

from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.fingerprint import shown
from st_dimreduce.codes.metrics import cosines, nearest, overlaps
from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.codes.rows import as_count, row_norms
from st_dimreduce.codes.stores import Column, columns_of
from st_dimreduce.enums import Objective, OnBadRow, Precision, Store
from st_dimreduce.errors import UserError
from st_dimreduce.files import check_place
from st_dimreduce.fitting.budget import Size
from st_dimreduce.models.load import load_head
from st_dimreduce.progress import progress_bar
from st_dimreduce.vectors.fit import fit_on_vectors

FITTED_ROWS = 50_000  # rows that a head is fitted on at most
_SAMPLED_ROWS = 1_000  # rows among which the overlap is measured
_FEWEST_ROWS = 50  # fewer say nothing of an overlap@10
_CHECKED_ROWS = 50  # rows whose codes are compared with the head's
_SAME = 0.99  # median cosine of a head's codes to those that it gave; of another head's codes it is near 0
_SECRET = re.compile(r"(?i)((?:password|api_?key|token)\s*=\s*)[^\s&;]+")
_LOGIN = re.compile(r"(://[^:/?#@\s]*):(.*)@")
_UNESCAPED = re.compile(r"[@/:?#\[\]\s]|%(?![0-9A-Fa-f]{2})")
_PLACES = {  # what a source begins with, and the module and class of its database
    "postgresql:": ("pgvector", "PgVector"),
    "postgres:": ("pgvector", "PgVector"),
    "http:": ("qdrant", "Qdrant"),
    "https:": ("qdrant", "Qdrant"),
}
Encode = Callable[[Sequence[Any], np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Names:
    """The names of a migration in the database, as the user gives them; None for the database's own choice.

    Attributes:
        table: Table, or collection, of the full vectors.
        column: Column, or named vector, of them.
        id_column: Column of the ids.
        to: Column, or ``"table.column"`` (pgvector), collection (Qdrant) or table (DuckDB) of the codes.
    """

    table: str
    column: str | None = None
    id_column: str | None = None
    to: str | None = None


@dataclass(frozen=True)
class Migration:
    """What a migration did, or would do.

    Attributes:
        store: The store.
        source: Its address, without what is secret.
        full: Where the full vectors are.
        full_type: Their type in the store.
        reduced: Where the codes are.
        reduced_type: Their type in the store.
        precision: Precision of the codes.
        head: Digest of the head.
        rows: Number of full vectors.
        migrated: How many of them were reduced by this call.
        bad_rows: How many of those have no direction, and have the code of a zero vector.
        bytes_before: Bytes of the full vectors; of a dry run and after it, without indexes and ids.
        bytes_after: Bytes of the codes, likewise; an estimate in a dry run.
        seconds: Duration of reading, reducing and writing.
        overlap: Share in [0, 1] of the ten nearest by the full vectors that the codes find too, by exact search among
            ``sampled`` rows; None if it was not measured.
        sampled: Number of rows among which it was measured.
        index: The statement that makes an index of the codes; None where the store needs none.
        query: Python that finds the ten nearest.
        dry_run: Whether nothing was changed.
    """

    store: Store
    source: str
    full: str
    full_type: str
    reduced: str
    reduced_type: str
    precision: Precision
    head: str
    rows: int
    migrated: int
    bad_rows: int
    bytes_before: int
    bytes_after: int
    seconds: float
    overlap: float | None
    sampled: int
    index: str | None
    query: str
    dry_run: bool

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self) | {"store": self.store.value, "precision": self.precision.value}

    def lines(self) -> list[str]:
        """Return it as text, a line each; statements are in lines of their own, to be copied."""
        factor = f", {self.bytes_before / self.bytes_after:.1f} times fewer" if self.bytes_after else ""
        lines = [
            f"{self.full}, {self.full_type} -> {self.reduced}, {self.reduced_type}",
            f"vectors     {self.rows:,}, {self.migrated:,} of them reduced now, in {self.seconds:.1f} s",
            f"bytes       {self.bytes_before:,} -> {self.bytes_after:,}{factor}",
        ]
        if self.dry_run:
            lines[1] = f"vectors     {self.rows:,}, {self.migrated:,} of them to be reduced"
        if self.bad_rows:
            lines.append(f"no vector   {self.bad_rows:,} are NaN, infinite or zero, and stored as zeros")
        if self.overlap is not None:
            lines += [
                f"overlap@10  {100 * self.overlap:.1f} %, by exact search among {self.sampled:,} rows: the share of",
                "            the ten nearest by the full vectors that is found too. A head fitted",
                "            for quality departs from them on purpose.",
            ]
        if self.index:
            lines += ["", "The index:", "", self.index]
        lines += ["", "The query, of a vector by the model that gave the full ones:", "", self.query]
        if self.dry_run:
            lines += ["", "Nothing was changed."]
        return lines


class Database(ABC):
    """The full vectors of a database, and the place beside them for the codes.

    Attributes:
        store: The store.
        errors: What its client raises.
        batch_size: Rows per transaction by default.
        full: Where the full vectors are, as messages name it.
        full_type: Their type.
        dimensions: Their size d.
        reduced: Where the codes are.
        column: The type of the codes, from :meth:`use`.
        out_features: Their size k, from :meth:`use`.
        warning: What a user should know before it begins; empty if nothing.
    """

    store: ClassVar[Store]
    errors: ClassVar[tuple[type[Exception], ...]]
    batch_size: ClassVar[int]
    full: str
    full_type: str
    dimensions: int
    reduced: str
    column: Column
    out_features: int
    warning: str = ""

    def __init__(self, source: str, names: Names, read_only: bool) -> None:
        """Open it; with ``read_only`` nothing can be changed."""
        self._connect(source, read_only)
        try:
            self._describe(names)
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _connect(self, source: str, read_only: bool) -> None:
        """Make the connection."""

    @abstractmethod
    def _describe(self, names: Names) -> None:
        """Find the full vectors, and the place beside them."""

    @abstractmethod
    def close(self) -> None:
        """End the connection."""

    def columns(self) -> dict[Precision, Column]:
        """Return the type that holds each precision."""
        return {column.precision: column for column in columns_of(self.store)}

    def use(self, column: Column, out_features: int) -> None:
        """Choose the type of the codes.

        Raises:
            ValueError: If the place of the codes is there with another type.
        """
        self.column, self.out_features = column, out_features
        found = self.found_type()
        if found not in (None, self.reduced_type):
            raise UserError(
                f"{self.reduced} is {found}, expected {self.reduced_type}: name another place with --to, or drop it"
            )

    @property
    @abstractmethod
    def reduced_type(self) -> str:
        """Type of the codes, as the store writes it."""

    @abstractmethod
    def found_type(self) -> str | None:
        """Type of the codes that are there; None if there is no such place."""

    @abstractmethod
    def count(self) -> tuple[int, int]:
        """Return the number of full vectors, and of codes."""

    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Return the bytes of the full vectors and of the codes, without indexes and ids."""

    @abstractmethod
    def sample(self, rows: int) -> Iterator[np.ndarray]:
        """Yield about so many of the full vectors, at random, float32 of shape (n, d)."""

    @abstractmethod
    def pairs(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Return so many full vectors, at random, that have codes, and these as :func:`quantize` gave them."""

    @abstractmethod
    def create(self) -> None:
        """Make the place of the codes, unless it is there."""

    @abstractmethod
    def fill(self, encode: Encode, batch_size: int) -> Iterator[int]:
        """Write the codes that are missing, a transaction per batch; yields the number of rows in each.

        Args:
            encode: Returns the codes of ids and their vectors.
            batch_size: Rows per transaction.
        """

    @property
    @abstractmethod
    def index(self) -> str | None:
        """The statement that makes an index of the codes; None where there is none to be made."""

    @abstractmethod
    def query(self, head: str) -> str:
        """Return Python that finds the ten nearest, with the head in this folder."""


def migrate(
    source: str,
    table: str,
    head: str | os.PathLike[str],
    *,
    column: str | None = None,
    id_column: str | None = None,
    to: str | None = None,
    precision: Precision | str | None = None,
    bytes_per_vector: int | None = None,
    objective: Objective | str = Objective.QUALITY,
    seed: int = 0,
    batch_size: int | None = None,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
    dry_run: bool = False,
    announce: Callable[[str], None] = lambda line: None,
) -> Migration:
    """Write reduced vectors beside the full ones in a database, in batches, each a transaction.

    After an interruption the same call continues, and later it reduces what was added since.

    Args:
        source: ``postgresql://...`` (pgvector), ``http://...`` (a Qdrant server, whose key is in ``QDRANT_API_KEY``),
            the folder of Qdrant's local mode, or a DuckDB file.
        table: Table or collection of the full vectors, such as ``"documents"`` or ``"schema.documents"``.
        head: Folder of a head, or name or folder of a reduced model.
        column: Column, or named vector, of the full vectors. Defaults to None: the only one.
        id_column: Column of the ids, which are unique. Defaults to None: the primary key.
        to: Where the codes go: a new column, or ``"table.column"`` of a new table (pgvector), a new collection
            (Qdrant), a new table (DuckDB). Defaults to None: the old name and ``_reduced``.
        precision: Precision of the codes. Defaults to None: the head's.
        bytes_per_vector: If the folder of the head does not exist, fit one for this budget on a sample of the full
            vectors, and save it there. Defaults to None: the head must exist.
        objective: Of that fit, as in :func:`st_dimreduce.fit_head`. Defaults to ``"quality"``.
        seed: Seed of that fit. Defaults to 0.
        batch_size: Rows per transaction. Defaults to None: 1,000 in pgvector, 256 in Qdrant, 16,384 in DuckDB.
        on_bad_row: ``"raise"`` (the default) stops at a vector that is NaN, infinite or zero; ``"zero"`` stores the
            code of a zero vector.
        dry_run: Only say what would be done. Defaults to False.
        announce: Called with a line of what is about to be done. Defaults to nothing.

    Raises:
        ModuleNotFoundError: If the store's client is missing; names the extra.
        ValueError: If a name is not found, the store does not hold the precision, codes of another head are there, or
            the database refuses; says what to do, and nothing that is secret.
    """
    on_bad_row = OnBadRow(on_bad_row)
    asked = None if precision is None else Precision(precision)
    if batch_size is not None:
        as_count(batch_size, "batch_size", "reduce at least 1 row at a time")
    folder = os.fspath(head)
    with _open(source, Names(table, column, id_column, to), dry_run) as database:
        rows, done = database.count()
        if not rows:
            raise UserError(f"{database.full} holds no vectors: nothing can be reduced")
        if bytes_per_vector is None or Path(folder).exists():
            loaded = _load(folder)
            if bytes_per_vector is not None:
                announce(f"The head in {folder} is there already: no other is fitted for {bytes_per_vector} bytes.")
        else:
            size = Size(bytes_per_vector=bytes_per_vector, precision=asked, store=_store(database, asked))
            if done:
                raise UserError(
                    f"{database.reduced} holds codes, and there is no {folder}: give the head that made them, or name "
                    "another place with --to"
                )
            loaded = _fit(database, size, folder, Objective(objective), seed, on_bad_row, dry_run, announce)
        _choose(database, loaded, asked, folder)
        if done:
            _check_codes(database, loaded, folder)
        return _run(
            database,
            loaded,
            folder,
            _shown(source),
            batch_size or database.batch_size,
            on_bad_row,
            dry_run,
            announce,
            rows,
            done,
        )


def _run(
    database: Database,
    head: BaseHead,
    folder: str,
    source: str,
    batch_size: int,
    on_bad_row: OnBadRow,
    dry_run: bool,
    announce: Callable[[str], None],
    rows: int,
    done: int,
) -> Migration:
    precision, begin, reduced, bad_rows = database.column.precision, time.perf_counter(), 0, 0

    def encode(ids: Sequence[Any], vectors: np.ndarray) -> np.ndarray:
        nonlocal bad_rows
        bad = row_norms(vectors)[1]
        if len(bad) and on_bad_row is OnBadRow.RAISE:
            raise UserError(
                f"the vector of {ids[bad[0]]} in {database.full} is NaN, infinite or zero, it has no direction: repair "
                "it, or store it as zeros with --on-bad-row zero"
            )
        bad_rows += len(bad)
        with np.errstate(over="ignore", invalid="ignore"):  # in bad rows, which are replaced
            outputs = head.transform(vectors)
        outputs[bad] = 0
        return quantize(outputs, precision)

    if database.warning:
        announce(database.warning)
    if dry_run:
        overlap, sampled, reduced, seconds = None, 0, rows - done, 0.0
        sizes = database.sizes()[0], rows * database.column.bytes_per_vector(head.out_features)
    else:
        announce(f"Reducing {database.full}, {database.full_type}, to {database.reduced}, {database.reduced_type}:")
        announce(f"{rows - done:,} of {rows:,} vectors, {batch_size:,} at a time. The full vectors stay as they are.")
        database.create()
        with (
            _kept(lambda: reduced),
            progress_bar("Reducing", "rows", total=rows, done=done) as bar,
        ):
            for count in database.fill(encode, batch_size):
                reduced += count
                bar.update(count)
        seconds = time.perf_counter() - begin
        rows, sizes = database.count()[0], database.sizes()
        overlap, sampled = _overlap(database, head)
    return Migration(
        store=database.store,
        source=source,
        full=database.full,
        full_type=database.full_type,
        reduced=database.reduced,
        reduced_type=database.reduced_type,
        precision=precision,
        head=shown(head.fingerprint),
        rows=rows,
        migrated=reduced,
        bad_rows=bad_rows,
        bytes_before=sizes[0],
        bytes_after=sizes[1],
        seconds=seconds,
        overlap=overlap,
        sampled=sampled,
        index=database.index,
        query=database.query(folder),
        dry_run=dry_run,
    )


@contextmanager
def _kept(reduced: Callable[[], int]) -> Iterator[None]:
    """Say when it is interrupted what is kept."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(
            f"{reduced():,} reduced vectors are in the database, call again as before to go on"
        ) from interrupt


def _load(folder: str) -> BaseHead:
    try:
        return load_head(folder)
    except ValueError as error:
        if Path(folder).exists():
            raise
        fit = "give the folder that `st-dimreduce fit` wrote, or --bytes to fit one on the vectors and save it there"
        raise UserError(f"there is no head in {folder}: {fit}") from error


def _store(database: Database, precision: Precision | None) -> Store | None:
    """Return the store to which a byte budget is restricted; None for codes that it holds and does not search."""
    searched = {column.precision for column in columns_of(database.store)}
    return database.store if precision is None or precision in searched else None


def _fit(
    database: Database,
    size: Size,
    folder: str,
    objective: Objective,
    seed: int,
    on_bad_row: OnBadRow,
    dry_run: bool,
    announce: Callable[[str], None],
) -> BaseHead:
    check_place(folder)
    announce(f"Fitting a head on up to {FITTED_ROWS:,} vectors of {database.full}.")
    head = fit_on_vectors(
        database.sample(FITTED_ROWS),
        bytes_per_vector=size.bytes_per_vector,
        store=size.store,
        precision=size.precision,
        objective=objective,
        seed=seed,
        on_bad_row=on_bad_row,
        show_progress_bar=False,
    )
    if not dry_run:
        head.save(folder)
    what = f"{head.out_features} dimensions in {head.precision.value}, from {head.record.vectors:,} vectors"
    announce(f"{'Not saved' if dry_run else f'Saved to {folder}'}: {what}.")
    return head


def _choose(database: Database, head: BaseHead, precision: Precision | None, folder: str) -> None:
    """Choose the type of the codes, after checking that head, vectors and store go together."""
    if head.in_features != database.dimensions:
        raise UserError(
            f"{database.full} has {database.dimensions} dimensions, the head in {folder} takes {head.in_features}: "
            "give the head that was fitted on these vectors"
        )
    wanted, columns = precision or head.precision, database.columns()
    if wanted not in columns:
        held = ", ".join(f"{each.value} ({column.type.partition('[')[0]})" for each, column in columns.items())
        raise UserError(
            f"{database.store.value} does not hold {wanted.value}, which was {'asked for' if precision else 'fitted'}: "
            f"choose --precision from {held}"
        )
    database.use(columns[wanted], head.out_features)


def packed(texts: Iterable[str], size: int) -> np.ndarray:
    """Return binary codes of ``size`` dimensions that a database wrote as texts of 0 and 1."""
    bits = np.array([list(text.encode()) for text in texts], np.uint8).reshape(-1, size)
    return np.packbits(bits == ord("1"), axis=1)


def _decoded(database: Database, head: BaseHead, vectors: np.ndarray) -> np.ndarray:
    """Return what the store would hold of full vectors, decoded."""
    codes = quantize(head.transform(vectors), database.column.precision)
    return dequantize(codes, database.column.precision, head.out_features)


def _good_pairs(database: Database, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors that have a direction, and their codes, decoded."""
    vectors, codes = database.pairs(rows)
    good = np.setdiff1d(np.arange(len(vectors)), row_norms(vectors)[1])
    decoded = dequantize(codes[good], database.column.precision, database.out_features)
    return vectors[good], decoded


def _check_codes(database: Database, head: BaseHead, folder: str) -> None:
    """Raise ``ValueError`` if the codes that are there are not those of the head."""
    vectors, codes = _good_pairs(database, _CHECKED_ROWS)
    if not len(vectors):
        return
    agreement = float(np.median(cosines(_decoded(database, head, vectors), codes)))
    if not agreement >= _SAME:
        raise UserError(
            f"{database.reduced} holds codes of another head than {folder} (median cosine {agreement:.2f} to what that "
            "gives): give the head that made them, or name another place with --to"
        )


def _overlap(database: Database, head: BaseHead) -> tuple[float | None, int]:
    """Return the overlap@10 of codes and full vectors among some rows, and the number of these."""
    vectors, codes = _good_pairs(database, _SAMPLED_ROWS)
    if len(vectors) < _FEWEST_ROWS:
        return None, len(vectors)
    queries = codes if database.column.query is not Precision.FLOAT32 else head.transform(vectors)
    own = np.arange(len(vectors))
    shares = overlaps(nearest(vectors, vectors, own), nearest(queries, codes, own))
    return float(shares.mean()), len(vectors)


@contextmanager
def _open(source: str, names: Names, read_only: bool) -> Iterator[Database]:
    """Open the database that a source names; its client's errors become one line without what is secret."""
    kind = _database(source)
    try:
        database = kind(source, names, read_only)
        try:
            yield database
        finally:
            database.close()
    except kind.errors as error:
        message = _without_secrets(" ".join(str(error).split()) or type(error).__name__, source)
        raise UserError(f"{_shown(source)}: {message}") from error


def _database(source: str) -> type[Database]:
    _password(source)
    place = next((place for begin, place in _PLACES.items() if source.startswith(begin + "//")), None)
    if place is None and Path(source).is_file():
        place = "duckdb", "DuckDB"
    if place is None and Path(source, "meta.json").is_file():  # of its local mode
        place = "qdrant", "Qdrant"
    if place is None:
        raise UserError(
            f"{_shown(source)} is no database: expected postgresql://..., http://... (a Qdrant server), a folder of "
            "Qdrant's local mode or a DuckDB file"
        )
    module, name = place
    return getattr(importlib.import_module(f"st_dimreduce.integrations.migrate_{module}"), name)


def _address(source: str) -> str:
    """Return what is before the parameters; all of it where a password may hold a question mark."""
    address = source.partition("?")[0]
    return source if "@" in source and "@" not in address else address


def _shown(source: str) -> str:
    """Return an address without password, key and parameters."""
    address = _LOGIN.sub(r"\1@", _address(source))
    return _SECRET.sub(r"\1...", address.partition("?")[0] if "://" in address else address)


def _password(source: str) -> str:
    """Return the password in an address as it is written there; an empty string if there is none.

    Raises:
        ValueError: If a client would take a part of it for something else, which its messages then repeat.
    """
    login = _LOGIN.search(_address(source))
    password = login[2] if login else ""
    if _UNESCAPED.search(password):
        raise UserError(
            f"{_shown(source)}: the password holds one of @ / : ? # [ ] % as it is: write it as %40, %2F and so on, or "
            "leave it out and set PGPASSWORD"
        )
    return password


def _without_secrets(message: str, source: str) -> str:
    """Return a message without the password and the keys of an address, in whatever form the client repeats them."""
    given = [_password(source), os.environ.get("QDRANT_API_KEY", "")]
    given += [found[0].partition("=")[2].strip() for found in _SECRET.finditer(source)]
    for secret in {form for each in given for form in (each, unquote(each))} - {""}:
        message = message.replace(secret, "...")
    return message
