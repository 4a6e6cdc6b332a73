"""Reduced vectors beside the full ones in a database: what pgvector and Qdrant have in common.

A full vector without a code is still to be reduced: there is no other record of how far a migration is. So the same
call goes on after an interruption, and takes what was added since. Full vectors are read and never changed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from st_dimreduce.codes.metrics import cosines, nearest, overlaps
from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.codes.rows import row_norms
from st_dimreduce.codes.stores import columns_of
from st_dimreduce.enums import OnBadRow, Precision
from st_dimreduce.errors import UserError
from st_dimreduce.files import check_place
from st_dimreduce.fitting.size import Size
from st_dimreduce.head import Head
from st_dimreduce.integrations.database import Counts, Database, Plan
from st_dimreduce.progress import progress_bar

FITTED_ROWS = 50_000  # rows that a head is fitted on at most
_SAMPLED_ROWS = 1_000  # rows among which the overlap is measured
_FEWEST_ROWS = 50  # fewer say nothing of an overlap@10
_CHECKED_ROWS = 50  # rows whose codes are compared with the head's
_SAME = 0.99  # median cosine of a head's codes to those that it gave; of another head's codes it is near 0
_LOGIN = re.compile(r"(://[^:/?#@\s]*):(?!\d+/)(.*)@")  # not a port; up to the last @, for a password may hold one
_SECRET = re.compile(r"(?i)((?:password|api_?key|token)\s*=\s*)([^\s&;]+)")


@dataclass(frozen=True)
class Migration:
    """What a migration did, or would do.

    Attributes:
        full, reduced: Where the full vectors and the codes are, and their types in the store.
        precision: Precision of the codes.
        rows: Number of full vectors.
        migrated: How many of them got a code by this call; in a dry run, would get one.
        missing: How many have no code after it.
        bad_rows: How many of the migrated have no direction, and were stored as the code of a zero vector.
        orphans: Number of codes whose full vector is gone.
        pruned: Whether those were deleted.
        bytes_before, bytes_after: Bytes of the full vectors and of their codes, without indexes, ids and headers.
        seconds: Duration of reading, reducing and writing.
        overlap: Share in [0, 1] of the ten nearest by the full vectors that the codes find too, by exact search among
            ``sampled`` rows; None if it was not measured.
        sampled: Number of rows among which it was measured.
        index: The statement that makes an index of the codes; None where the store makes it by itself.
        query: Python that finds the ten nearest.
        dry_run: Whether nothing was changed.
    """

    full: str
    reduced: str
    precision: Precision
    rows: int
    migrated: int
    missing: int
    bad_rows: int
    orphans: int
    pruned: bool
    bytes_before: int
    bytes_after: int
    seconds: float
    overlap: float | None
    sampled: int
    index: str | None
    query: str
    dry_run: bool

    def lines(self) -> list[str]:
        """Return it as text, a line each; statements are in lines of their own, to be copied."""
        smaller = f"{self.bytes_before / self.bytes_after:.1f} times fewer"
        lines = [
            f"{self.full} -> {self.reduced}",
            f"vectors     {self.rows:,}, {self.migrated:,} of them "
            + ("to be reduced" if self.dry_run else f"reduced now, in {self.seconds:.1f} s"),
            f"bytes       {self.bytes_before:,} -> {self.bytes_after:,}, {smaller}",
        ]
        if self.bad_rows:
            lines.append(f"no vector   {self.bad_rows:,} are NaN, infinite or zero, and stored as zeros")
        if self.missing and not self.dry_run:
            lines.append(f"no code     {self.missing:,}: added meanwhile, or the database left them as they were")
        if self.orphans:
            what = "deleted" if self.pruned else "--prune deletes them"
            lines.append(f"orphans     {self.orphans:,} codes whose full vector is gone: {what}")
        if self.overlap is not None:
            lines += [
                f"overlap@10  {100 * self.overlap:.1f} %, by exact search among {self.sampled:,} rows: the share of",
                "            the ten nearest by the full vectors that is found too. A head fitted",
                "            for quality departs from them on purpose.",
            ]
        if self.index:
            lines += ["", "The index:", "", self.index]
        lines += ["", "The query, for a vector of the model that gave the full ones:", "", self.query]
        return [*lines, "", "Nothing was changed."] if self.dry_run else lines


def migrate(source: str, head: str | os.PathLike[str], plan: Plan, *, dry_run: bool = False) -> Migration:
    """Write reduced vectors beside the full ones in a database, in batches, each a transaction.

    After an interruption the same call goes on, and later it reduces what was added since. It ends when no full vector
    is without a code, or when a pass has left no fewer of these than there were.

    Args:
        source: ``postgresql://...`` (pgvector), ``http://...`` (a Qdrant server, whose key is in ``QDRANT_API_KEY``),
            or the folder of Qdrant's local mode.
        head: Folder of a head, or name or folder of a reduced model.
        plan: What to reduce, and how.
        dry_run: Only say what would be done. Defaults to False.

    Raises:
        MissingExtraError: If the store's client is missing; names the extra.
        UserError: If a name is not found, the store does not hold the precision, codes of another head are there, or
            the database refuses; says what to do, and nothing that is secret.
    """
    folder = os.fspath(head)
    with _open(source, plan, dry_run) as database:
        before = database.count()
        if not before.rows:
            raise UserError(f"{database.full} holds no vectors: nothing can be reduced")
        fitted = _head(database, plan, folder, before.codes, dry_run)
        _choose(database, fitted, plan, folder)
        if before.done:
            _check_codes(database, fitted, folder)
        start, after, bad_rows, overlap, sampled = time.perf_counter(), before, 0, None, 0
        if not dry_run:
            if database.found_type is None:
                database.create()
            after, bad_rows = _fill(database, fitted, plan, before)
            if plan.prune and after.codes > after.done:
                database.prune()
        seconds = time.perf_counter() - start
        if not dry_run and after.done:
            overlap, sampled = _overlap(database, fitted)
        index, query = database.usage(folder)
        return Migration(
            full=f"{database.full}, {database.full_type}",
            reduced=f"{database.reduced}, {database.reduced_type}",
            precision=database.column.precision,
            rows=after.rows,
            migrated=before.missing if dry_run else after.done - before.done,
            missing=after.missing,
            bad_rows=bad_rows,
            orphans=after.codes - after.done,
            pruned=plan.prune and not dry_run,
            bytes_before=after.rows * database.in_features * database.full_bits // 8,
            bytes_after=after.rows * database.column.bytes_per_vector(fitted.out_features),
            seconds=seconds,
            overlap=overlap,
            sampled=sampled,
            index=index,
            query=query,
            dry_run=dry_run,
        )


def _fill(database: Database, head: Head, plan: Plan, counts: Counts) -> tuple[Counts, int]:
    """Reduce what has no code, pass after pass while that helps; return what is there then, and the bad rows."""
    bad_rows = 0
    try:
        with progress_bar("Reducing", "rows", total=counts.rows, done=counts.done) as bar:
            while counts.missing:
                with closing(database.missing(plan.batch_size)) as batches:
                    for rows, vectors in batches:
                        bad = row_norms(vectors)[1]
                        if len(bad) and plan.on_bad_row is OnBadRow.RAISE:
                            raise UserError(
                                f"the vector of {rows[bad[0]].id} in {database.full} is NaN, infinite or zero, it has "
                                "no direction: repair it, or store it as zeros with --on-bad-row zero"
                            )
                        bad_rows += len(bad)
                        with np.errstate(over="ignore", invalid="ignore"):  # in bad rows, which are replaced
                            reduced = head.transform(vectors)
                        reduced[bad] = 0
                        database.write(rows, quantize(reduced, database.column.precision))
                        bar.update(len(rows))
                # What was added meanwhile may have a lower id; what a trigger or row security undoes stays missing.
                before, counts = counts, database.count()
                if counts.missing >= before.missing:
                    break
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("what was reduced is in the database, call again as before to go on") from interrupt
    return counts, bad_rows


def _head(database: Database, plan: Plan, folder: str, codes: int, dry_run: bool) -> Head:
    """Return the head in the folder; where there is none and a budget is given, fit one and save it there."""
    if plan.bytes is None or Path(folder).exists():
        try:
            return Head.load(folder)
        except UserError as error:
            if Path(folder).exists():
                raise
            fit = "give a folder that `st-dimreduce fit` wrote, or --bytes to fit a head and save it there"
            raise UserError(f"there is no head in {folder}: {fit}") from error
    if codes:
        raise UserError(
            f"{database.reduced} holds codes, and there is no {folder}: give the head that made them, or name another "
            "place with --to"
        )
    check_place(folder)
    size = Size(bytes=plan.bytes, store=database.store, precision=plan.precision)
    sample = (vectors for vectors, _ in database.sample(FITTED_ROWS, coded=False))
    head = Head.fit(sample, size, objective=plan.objective, on_bad_row=plan.on_bad_row)
    if not dry_run:
        head.save(folder)
    return head


def _choose(database: Database, head: Head, plan: Plan, folder: str) -> None:
    """Choose the type of the codes, after checking that head, vectors and store go together."""
    if head.in_features != database.in_features:
        raise UserError(
            f"{database.full} has {database.in_features} dimensions, the head in {folder} takes {head.in_features}: "
            "give the head that was fitted on these vectors"
        )
    columns = {column.precision: column for column in columns_of(database.store)}
    precision = Precision(plan.precision or head.precision)
    if precision not in columns:
        choices = ", ".join(f"{each.value} ({column.type})" for each, column in columns.items())
        raise UserError(f"{database.store} does not hold {precision} codes: choose --precision from {choices}")
    database.column, database.out_features = columns[precision], head.out_features
    needed = database.column.bytes_per_vector(head.out_features)
    if plan.bytes is not None and needed > plan.bytes:
        raise UserError(
            f"the head in {folder} takes {needed} bytes per vector, --bytes {plan.bytes} were given: name a new folder "
            "with --head to fit another, or leave --bytes out"
        )
    if database.found_type not in (None, database.reduced_type):
        raise UserError(
            f"{database.reduced} is {database.found_type}, expected {database.reduced_type}: name another place with "
            "--to, or drop it"
        )


def _good_pairs(database: Database, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors that have a direction, and their codes, decoded."""
    vectors, codes = (np.concatenate(part) for part in zip(*database.sample(rows, coded=True), strict=True))
    good = np.setdiff1d(np.arange(len(vectors)), row_norms(vectors)[1])
    return vectors[good], dequantize(codes[good], database.column.precision, database.out_features)


def _check_codes(database: Database, head: Head, folder: str) -> None:
    """Raise ``UserError`` if the codes that are there are not those of the head."""
    vectors, codes = _good_pairs(database, _CHECKED_ROWS)
    expected = head.encode(vectors, database.column.precision).decode()
    agreement = float(np.median(cosines(expected, codes))) if len(vectors) else 1.0
    if not agreement >= _SAME:
        raise UserError(
            f"{database.reduced} holds codes of another head than {folder} (median cosine {agreement:.2f} to what that "
            "gives): give the head that made them, or name another place with --to"
        )


def _overlap(database: Database, head: Head) -> tuple[float | None, int]:
    """Return the overlap@10 of codes and full vectors among some rows, and the number of these."""
    vectors, codes = _good_pairs(database, _SAMPLED_ROWS)
    if len(vectors) < _FEWEST_ROWS:
        return None, len(vectors)
    queries = codes if database.column.query is not Precision.FLOAT32 else head.transform(vectors)
    own = np.arange(len(vectors))
    shares = overlaps(nearest(vectors, vectors, own), nearest(queries, codes, own))
    return float(shares.mean()), len(vectors)


@contextmanager
def _open(source: str, plan: Plan, read_only: bool) -> Iterator[Database]:
    """Open the database that a source names; its client's errors become one line without what is secret."""
    address, password = _without_password(source)
    name = _SECRET.sub(r"\1...", address.partition("?")[0] if "://" in address else address)
    kind: type[Database]
    if re.match("postgres(ql)?://", source):
        from st_dimreduce.integrations.migrate_pgvector import PgVector  # noqa: PLC0415, optional

        kind = PgVector
    elif re.match("https?://", source) or Path(source, "meta.json").is_file():  # of the local mode
        from st_dimreduce.integrations.migrate_qdrant import Qdrant  # noqa: PLC0415, optional

        kind = Qdrant
    else:
        expected = "postgresql://..., http://... (a Qdrant server) or a folder of Qdrant's local mode"
        raise UserError(f"{name} is not a database: expected {expected}")
    try:
        database = kind(address, password, read_only)
        with closing(database.connection):
            database.find(plan)
            yield database
    except kind.errors as error:
        message = " ".join(str(error).split()) or type(error).__name__
        secrets = [password, os.environ.get("QDRANT_API_KEY"), *(found[2] for found in _SECRET.finditer(source))]
        for secret in filter(None, secrets):
            message = message.replace(secret, "...")
        raise UserError(f"{name}: {message}") from error


def _without_password(source: str) -> tuple[str, str]:
    """Return an address without its password, which a client's messages would repeat in parts, and the password."""
    before, mark, parameters = source.partition("?")
    if "@" not in before and "@" in source:  # a question mark in the password
        before, mark, parameters = source, "", ""
    login = _LOGIN.search(before)
    return _LOGIN.sub(r"\1@", before) + mark + parameters, unquote(login[2]) if login else ""
