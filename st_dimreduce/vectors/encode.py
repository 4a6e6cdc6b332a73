"""Texts encoded by a reduced model: stored as codes, and searched."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sentence_transformers import SentenceTransformer

from st_dimreduce.codes.origin import Origin
from st_dimreduce.codes.precision import check_codes, quantize
from st_dimreduce.codes.search import search
from st_dimreduce.dim_reduce import DimReduce, head_of
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError
from st_dimreduce.files import exclusive_run, resolve_target
from st_dimreduce.progress import progress_bar
from st_dimreduce.texts import digest_of
from st_dimreduce.vectors.drift import DriftSample
from st_dimreduce.vectors.kinds import sink_files
from st_dimreduce.vectors.reduce import NEW_COLUMN, Transformed
from st_dimreduce.vectors.sinks import Parts
from st_dimreduce.vectors.sources import slices
from st_dimreduce.vectors.stored import open_codes

_PART_ROWS = 1 << 12  # texts that a run which is killed encodes again at most
_TEXTS = "text"


def encode_and_reduce(
    texts: Sequence[str],
    model: SentenceTransformer,
    sink: str | os.PathLike[str],
    precision: Precision | str | None = None,
    *,
    batch_size: int = 32,
    overwrite: bool = False,
) -> Transformed:
    """Encode texts as documents with a reduced model, and store them as codes, in their order.

    A run that is killed continues, called again with the same arguments, where it was.

    Args:
        texts: The texts.
        model: The reduced model.
        sink: A path that ends in ``.npy`` (the codes only), or in ``.parquet`` or ``.arrow`` for a table of the texts,
            ``text``, and the codes, ``embedding``.
        precision: How the codes are stored. Defaults to None: as the head was fitted for.
        batch_size: Texts encoded at a time. Defaults to 32.
        overwrite: Replace a sink that exists, and the parts of another run. Defaults to False.

    Returns:
        What was written.

    Raises:
        BlockingIOError: If another run is writing the sink.
        FileExistsError: If the sink exists and ``overwrite`` is False.
        ModuleNotFoundError: If the sink is a table and pyarrow is missing.
        OSError: If the disk is full; complete parts are kept.
        ValueError: If there is no text, the model has no head, or an unfinished run was begun with something else.
    """
    begin = time.perf_counter()
    if isinstance(texts, str) or not len(texts):
        raise UserError("there is no text: give a list of at least one")
    head = DimReduce.from_model(model).to_head()
    precision = head.precision if precision is None else Precision(precision)
    origin, path = Origin(precision, head.out_features, head.fingerprint), resolve_target(sink)
    if not path.suffix:
        raise UserError(f"{sink} has no suffix: expected .npy, .parquet or .arrow")
    part, whole = sink_files(path, tabular=path.suffix != ".npy")
    identity = {"source": [[digest_of(texts)]], "head": head.digest, "precision": precision.value}
    sample = DriftSample(head)
    with (
        exclusive_run(path),
        Parts(path, part, whole, _PART_ROWS, identity, None, overwrite, origin) as parts,
        _sampled(model, sample),
    ):
        with progress_bar("Encoding", "texts", total=len(texts), done=parts.rows) as bar:
            for rows in slices(parts.rows, len(texts), _PART_ROWS):
                vectors = model.encode_document(list(texts[rows]), batch_size=batch_size, show_progress_bar=False)
                codes = quantize(np.asarray(vectors), precision)
                parts.write(_with_texts(codes, texts[rows], origin) if part.tabular else codes, 0)
                bar.update(len(codes))
        size = parts.finish()
    return Transformed(Path(sink), len(texts), 0, size, time.perf_counter() - begin, sample)


@contextmanager
def _sampled(model: SentenceTransformer, sample: DriftSample) -> Iterator[None]:
    """Add to a sample what reaches the model's head within a block, unless that is folded or reduces tokens."""
    module, record = head_of(model)
    if record.folded is not None or module.module_input_name != "sentence_embedding":
        yield
        return

    def note(_: Any, inputs: tuple[dict[str, Any]]) -> None:
        sample.add(inputs[0]["sentence_embedding"])

    hook = module.register_forward_pre_hook(note)
    try:
        yield
    finally:
        hook.remove()


class Result(NamedTuple):
    """A document found: its row among the codes, from 0, its cosine to the query, and its text, if it is known."""

    row: int
    cosine: float
    text: str


def search_codes(
    model: SentenceTransformer,
    codes: str | os.PathLike[str],
    queries: Sequence[str],
    top_k: int = 10,
    precision: Precision | str | None = None,
    texts: Sequence[str] | None = None,
) -> list[list[Result]]:
    """Search a file of codes exactly, in memory.

    Args:
        model: The reduced model that made the codes.
        codes: What :func:`encode_and_reduce` or :func:`st_dimreduce.reduce_vectors` wrote.
        queries: The queries, encoded as such.
        top_k: Results per query. Defaults to 10.
        precision: Precision of the codes. Defaults to None: what is written with them.
        texts: Text of each row. Defaults to None: the column ``text`` of a table, else empty.

    Returns:
        For each query its results, the nearest first.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no codes, those of another head or precision, or not as many as there are texts.
    """
    head = DimReduce.from_model(model).to_head()
    stored = open_codes(codes)
    if stored is None:
        raise UserError(f"{codes} holds no codes: give what st-dimreduce encode or apply wrote")
    stored.check(head, None if precision is None else Precision(precision))
    found = head.precision if stored.origin is None else stored.origin.precision
    precision = found if precision is None else Precision(precision)
    rows = np.concatenate(list(stored.chunks()))
    check_codes(rows, precision, head.out_features)
    if texts is None and stored.table is not None and _TEXTS in stored.table.schema.names:
        texts = [text for batch in stored.table.column_batches(_TEXTS) for text in batch.to_pylist()]
    if texts is not None and len(texts) != len(rows):
        raise UserError(f"{codes} holds {len(rows):,} codes, but there are {len(texts):,} texts: give theirs")
    vectors = np.asarray(model.encode_query(list(queries), show_progress_bar=False))
    cosines, places = search(vectors, rows, precision, top_k)
    return [
        [Result(place, cosine, "" if texts is None else str(texts[place])) for place, cosine in zip(*both, strict=True)]
        for both in zip(places.tolist(), cosines.tolist(), strict=True)
    ]


def _with_texts(codes: np.ndarray, texts: Sequence[str], origin: Origin) -> Any:
    import pyarrow as pa  # noqa: PLC0415, optional

    from st_dimreduce.vectors.arrow import code_batch, code_schema  # noqa: PLC0415, optional

    others = pa.table({_TEXTS: pa.array(list(texts), pa.large_string())})
    columns = pa.schema([*others.schema, pa.field(NEW_COLUMN, pa.list_(pa.float32()))])
    return code_batch(code_schema(columns, NEW_COLUMN, origin), NEW_COLUMN, codes, others)
