"""Texts encoded by a reduced model: stored as codes, and searched."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sentence_transformers import SentenceTransformer

from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.codes import COLUMN, Codes
from st_dimreduce.codes.origin import Origin, origin_beside
from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.rows import map_array
from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError
from st_dimreduce.files import exclusive_run
from st_dimreduce.models.encoding import body_digest, prompt_of
from st_dimreduce.progress import progress_bar
from st_dimreduce.texts import digest_of
from st_dimreduce.vectors.batches import slices
from st_dimreduce.vectors.reduce import Transformed
from st_dimreduce.vectors.sinks import Output, open_sink, size_of

_PART_ROWS = 1 << 12  # texts that a run which is killed encodes again at most
_TEXTS = "text"  # the column of texts in a table


def encode_file(
    model: SentenceTransformer,
    texts: Sequence[str],
    target: str | os.PathLike[str],
    precision: Precision | str | None = None,
    *,
    batch_size: int = 32,
    overwrite: bool = False,
) -> Transformed:
    """Encode texts as documents with a reduced model, and store them as codes, in their order.

    A run that was killed resumes when it is called again with the same arguments, if
    :func:`st_dimreduce.models.encoding.body_digest` knows the model's modules.

    Args:
        model: The reduced model.
        texts: The texts.
        target: A path that ends in ``.npy`` (the codes only), in ``.parquet`` or ``.arrow`` for a table of the texts,
            ``text``, and the codes, ``embedding``, or in no suffix for a folder of such ``.parquet`` files.
        precision: How the codes are stored. Defaults to None: as the head was fitted for.
        batch_size: Texts encoded at a time. Defaults to 32.
        overwrite: Replace a target that exists, and the parts of another run. Defaults to False.

    Returns:
        What was written.

    Raises:
        BlockingIOError: If another run is writing the target.
        FileExistsError: If the target exists and ``overwrite`` is False.
        ModuleNotFoundError: If the target is a table and pyarrow is missing.
        OSError: If the disk is full.
        UserError: If there is no text, the model has no head or truncates what it gives, or an unfinished run was begun
            with other texts, another model or another precision.
    """
    begin = time.perf_counter()
    if isinstance(texts, str) or not len(texts):
        raise UserError("there is no text: give a list of at least one")
    head = _head_of(model)
    precision = head.precision if precision is None else Precision(precision)
    digest = body_digest(model)
    identity = {
        "texts": digest_of(texts),
        "model": digest,
        "prompt": prompt_of(model, "document"),
        "precision": precision.value,
    }
    output = Output(
        Path(target),
        Origin(precision, head.out_features, head.fingerprint),
        None if Path(target).suffix == ".npy" else _texts_table([]).schema,
        part_rows=_PART_ROWS,
        identity=identity if digest is not None else None,
    )
    with (
        exclusive_run(output.target),
        open_sink(output, overwrite) as sink,
        progress_bar("Encoding", "texts", total=len(texts), done=sink.done.rows) as bar,
    ):
        for rows in slices(sink.done.rows, len(texts), _PART_ROWS):
            some = list(texts[rows])
            vectors = model.encode_document(some, batch_size=batch_size, show_progress_bar=False)
            sink.write(quantize(vectors, precision), _texts_table(some) if output.is_table else None)
            bar.update(len(some))
    size = size_of(output.target)
    return Transformed(Path(target), len(texts), 0, size, time.perf_counter() - begin)


class Result(NamedTuple):
    """A document found: its row among the codes, from 0, its cosine to the query, and its text, if it is known."""

    row: int
    cosine: float
    text: str


def search_codes(
    model: SentenceTransformer,
    path: str | os.PathLike[str],
    queries: Sequence[str],
    k: int = 10,
    *,
    precision: Precision | str | None = None,
    texts: Sequence[str] | None = None,
) -> list[list[Result]]:
    """Search a file of codes exactly, in memory.

    Args:
        model: The reduced model that made the codes.
        path: What :func:`encode_file` or :meth:`st_dimreduce.Head.transform_file` wrote.
        queries: The queries, encoded as such.
        k: Results per query. Defaults to 10.
        precision: Precision of the codes. Defaults to None: what is written with them.
        texts: Text of each row. Defaults to None: the column ``text`` of a table, else empty.

    Returns:
        For each query its results, the nearest first.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If it holds no codes, those of another head or precision, or not as many as there are texts.
    """
    head, place = _head_of(model), Path(path)
    if precision is not None and place.suffix == ".npy" and place.exists() and origin_beside(place) is None:
        codes = Codes(map_array(place), Precision(precision), head.out_features)
    else:
        codes = Codes.load(place)
    codes.origin.check(head.fingerprint, place)
    if precision not in (None, codes.precision):
        raise UserError(f"{place} holds {codes.precision.value} codes, not {precision}: leave the precision out")
    texts = _stored_texts(place) if texts is None else texts
    if texts is not None and len(texts) != len(codes):
        raise UserError(f"{place} holds {len(codes):,} codes, but there are {len(texts):,} texts: give theirs")
    cosines, rows = codes.search(model.encode_query(list(queries), show_progress_bar=False), k)
    return [
        [Result(row, cosine, "" if texts is None else str(texts[row])) for row, cosine in zip(*both, strict=True)]
        for both in zip(rows.tolist(), cosines.tolist(), strict=True)
    ]


def _head_of(model: SentenceTransformer) -> BaseHead:
    head = DimReduce.from_model(model).to_head()
    if model.truncate_dim not in (None, head.out_features):
        given = f"the model truncates its {head.out_features} dimensions to {model.truncate_dim}"
        raise UserError(f"{given}, its codes would have no head: set truncate_dim=None")
    return head


def _texts_table(texts: Sequence[str]) -> Any:
    """Return a table of texts, with a column of vectors that codes take the place of."""
    import pyarrow as pa  # noqa: PLC0415, optional

    vectors = pa.nulls(len(texts), pa.list_(pa.float32()))
    return pa.table({_TEXTS: pa.array(texts, pa.large_string()), COLUMN: vectors})


def _stored_texts(path: Path) -> list[str] | None:
    """Return the texts in a table of codes; None if it has none."""
    if path.suffix == ".npy" or (path.is_dir() and any(path.glob("*.npy"))):
        return None
    import pyarrow.dataset as ds  # noqa: PLC0415, optional

    stored = ds.dataset(path, format="parquet" if path.suffix in ("", ".parquet") else "ipc")
    texts: list[str] | None = None
    if _TEXTS in stored.schema.names:
        texts = stored.to_table(columns=[_TEXTS])[_TEXTS].to_pylist()
    return texts
