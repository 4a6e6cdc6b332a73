"""Summarising, reducing, encoding and indexing on Ray Data, for any number of vectors on any number of machines."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.ids import holds_names
from st_dimreduce.codes.manifest import MANIFEST, Manifest
from st_dimreduce.codes.origin import Origin
from st_dimreduce.codes.precision import quantize
from st_dimreduce.enums import Kind, OnBadRow, Precision
from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.files import new_folder
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.vectors import reduce as local
from st_dimreduce.vectors.fit import NO_GOOD_ROWS, read_summary
from st_dimreduce.vectors.index import TRAINED_PER_CELL, centres, fill, usual_cells

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

try:
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy, Dataset
except ModuleNotFoundError as error:
    raise MissingExtraError("Ray Data is missing: pip install 'st_dimreduce[ray]'") from error

from st_dimreduce.vectors.arrow import MemorySource, code_batch, code_schema, codes_of, vector_column

SUMMARISED_ROWS = 1 << 16  # at a time: of 200 MB of 768 dimensions, a Gram matrix of 4.7 MB is sent
_MERGED = 16  # summaries at a time
_VALUE_ERROR = "ValueError: "

Result = TypeVar("Result")


def summarize(
    dataset: Dataset,
    *,
    column: str | None = None,
    sample_size: int = 50_000,
    seed: int = 0,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
) -> Summary:
    """Summarise the vectors of a Ray dataset: a summary per 65,536 rows, made by the workers and merged in a tree.

    Only summaries are sent between machines. Each has a sample of 1.5 times its share of ``sample_size``, and 100 rows.
    The result is that of :func:`st_dimreduce.summarize` on the same rows, but for the order in which its sums are
    added and for the rows that the sample draws.

    Args:
        dataset: Dataset with a column of vectors: lists of equally many floats, or Ray's tensors (n, d).
        column: As in :func:`st_dimreduce.reduce_vectors`.
        sample_size: Rows in the summary's sample at most. Defaults to 50,000.
        seed: Seed of the sample. Defaults to 0.
        on_bad_row: As in :func:`st_dimreduce.summarize`.

    Raises:
        ValueError: If the dataset is empty, or as :func:`st_dimreduce.summarize`. Row numbers in the message count from
            the start of a worker's batch.
    """
    rows = dataset.count()
    if not rows:
        raise UserError("the dataset has no rows: give one that holds at least one vector")
    settings: dict[str, Any] = {"column": column, "seed": seed, "on_bad_row": OnBadRow(on_bad_row)}
    share = min(1.5 * sample_size / rows, 1.0)
    summarise = partial(_summarize, share=share, **settings)
    merge = partial(_merge, sample_size=sample_size, seed=seed)
    # What the other columns hold would be gathered with so many rows.
    vectors = dataset.map_batches(partial(_vectors, column=column), batch_size=None, batch_format="pyarrow")
    parts = vectors.map_batches(summarise, batch_size=SUMMARISED_ROWS, batch_format="pyarrow")
    for _ in range(math.ceil(math.log(math.ceil(rows / SUMMARISED_ROWS), _MERGED))):
        parts = parts.map_batches(merge, batch_size=_MERGED, batch_format="numpy")
    found = _raised(parts.take_all)
    merged = merge({"summary": np.array([row["summary"] for row in found], object)})["summary"][0]
    if not merged.count:
        raise UserError(NO_GOOD_ROWS)
    return merged


def reduce_vectors(
    dataset: Dataset,
    head: BaseHead,
    precision: Precision | str = Precision.FLOAT32,
    *,
    column: str | None = None,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
) -> Dataset:
    """Replace the vectors of a Ray dataset by codes, as :func:`st_dimreduce.reduce_vectors` does.

    Args:
        dataset: As in :func:`summarize`.
        head: The head, for vectors of size d.
        precision: How the codes are stored. Defaults to ``"float32"``.
        column: As in :func:`st_dimreduce.reduce_vectors`.
        on_bad_row: As in :func:`st_dimreduce.reduce_vectors`.

    Returns:
        A dataset that reduces when it is consumed, for example by ``write_parquet``: other columns are copied, float32
        and int8 are fixed-size lists, packed codes fixed-size binary. Ray keeps the order of rows only where
        ``DataContext.execution_options.preserve_order`` is set: have a column of ids.

    Raises:
        ValueError: If the precision is unknown. Vectors are checked when they are read.
    """
    settings: dict[str, Any] = {"precision": Precision(precision), "column": column, "on_bad_row": OnBadRow(on_bad_row)}
    reduce = partial(_reduce, head=head, **settings)
    # Blocks as they are, which Ray bounds by their bytes: a number of rows may be of any size.
    return dataset.map_batches(reduce, batch_size=None, batch_format="pyarrow")


def encode_and_reduce(
    dataset: Dataset,
    model: SentenceTransformer | str | os.PathLike[str],
    precision: Precision | str = Precision.FLOAT32,
    *,
    text_column: str = "text",
    column: str = "embedding",
    batch_size: int = 32,
    workers: int | None = None,
) -> Dataset:
    """Encode the texts of a Ray dataset with a reduced model, loaded once per worker, and store them as codes.

    Args:
        dataset: Dataset with a column of strings.
        model: The reduced model. A name or path is loaded by each worker: it must hold the same on all machines.
        precision: How the embeddings are stored. Defaults to ``"float32"``.
        text_column: The column of texts. Defaults to ``"text"``.
        column: The column to add. Defaults to ``"embedding"``.
        batch_size: Texts encoded at a time. Defaults to 32.
        workers: Number of models to load at most. Defaults to one per GPU of the cluster, or per CPU if it has none.

    Returns:
        A dataset that encodes when it is consumed; all its columns are kept.

    Raises:
        ValueError: If the precision is unknown, there is no such column of texts, or ``column`` exists already.
    """
    precision, resources = Precision(precision), ray.cluster_resources()
    schema = dataset.schema()
    names = [] if schema is None else schema.names
    if text_column not in names or column in names:
        raise UserError(
            f"the columns are {', '.join(names)}: expected {text_column!r} among them and no {column!r} yet"
        )
    gpus = int(resources.get("GPU", 0))
    return dataset.map_batches(
        _Encoder,
        fn_constructor_args=(model, precision, text_column, column, batch_size),
        compute=ActorPoolStrategy(min_size=1, max_size=workers or gpus or max(int(resources.get("CPU", 1)), 1)),
        num_gpus=1 if gpus else 0,
        num_cpus=1,
        batch_size=32 * batch_size,
        batch_format="pyarrow",
    )


def build_shards(
    dataset: Dataset,
    head: BaseHead,
    folder: str | os.PathLike[str],
    *,
    id_column: str,
    kind: Kind | str = Kind.IVF,
    precision: Precision | str | None = None,
    column: str | None = None,
    shard_rows: int = 1 << 20,
    seed: int = 0,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
) -> list[Path]:
    """Build indexes of codes where the vectors are, of about ``shard_rows`` vectors each.

    Their cells are the same, trained on a sample. Merge them with :func:`st_dimreduce.merge_indexes`, which assigns
    nothing anew, or search them side by side with :class:`Shards`.

    Args:
        dataset: As in :func:`summarize`, with a column of ids.
        head: The head, for vectors of size d.
        folder: The folder to make the indexes in, at the same place for all machines. What is there of an earlier call
            is replaced.
        id_column: The column of ids, integers or strings: Ray keeps no order of rows.
        kind: As in :func:`st_dimreduce.build_index`. Defaults to ``"ivf"``.
        precision: How the codes are stored. Defaults to the head's.
        column: As in :func:`st_dimreduce.reduce_vectors`.
        shard_rows: Vectors in an index; the last ones may have fewer. Defaults to 1,048,576.
        seed: Seed of the sample and the cells. Defaults to 0.
        on_bad_row: As in :func:`st_dimreduce.reduce_vectors`.

    Returns:
        The folders of the indexes, in the order of their names.

    Raises:
        ModuleNotFoundError: If FAISS is missing.
        ValueError: If the dataset is empty, or its vectors or ids cannot be indexed.
    """
    from st_dimreduce.codes import scan  # noqa: PLC0415, F401, what is missing is said before anything is read

    known, kind, place = head, Kind(kind), Path(folder).absolute()
    precision = known.precision if precision is None else Precision(precision)
    rows = dataset.count()
    if not rows:
        raise UserError("the dataset has no rows: give one that holds at least one vector")
    settings: dict[str, Any] = {"column": column, "on_bad_row": on_bad_row}
    manifest = Manifest(kind, precision, known.out_features, known.fingerprint, False, known.fingerprint)
    middles = None
    if kind is Kind.IVF:
        cells = usual_cells(min(shard_rows, rows))
        vectors = dataset.map_batches(partial(_vectors, column=column), batch_size=None, batch_format="pyarrow")
        # Sampled before they are reduced; of few rows more, or chance might leave fewer than cells.
        share = min(1.2 * cells * TRAINED_PER_CELL / rows, 1.0)
        sample = vectors if share == 1 else vectors.random_sample(share, seed=seed)
        some = [_codes(table) for table in _tables(reduce_vectors(sample, known, precision, **settings))]
        middles = centres(np.concatenate(some), manifest, cells, seed)
    choose = partial(_selected, column=column, id_column=id_column)
    chosen = dataset.map_batches(choose, batch_size=None, batch_format="pyarrow")
    made: dict[str, Any] = {"place": place, "head": known, "manifest": manifest, "middles": middles}
    build = partial(_build_shard, **made, id_column=id_column, seed=seed)
    codes = reduce_vectors(chosen, known, precision, **settings)
    built = codes.map_batches(build, batch_size=shard_rows, batch_format="pyarrow")
    return sorted(Path(row["path"]) for row in _raised(built.take_all))


class Shards:
    """Indexes that are searched side by side, each by a process of its own, which may be on another machine.

    Args:
        paths: Folders of the indexes, as the process that opens each of them sees it.

    Raises:
        ValueError: As :func:`st_dimreduce.open_index`.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        shard: Any = ray.remote(_Shard)
        self._shards = [shard.remote(str(path)) for path in paths]
        if not self._shards:
            raise UserError("no index was given: give the folders of one or more")
        self._sizes = _raised(lambda: ray.get([shard.size.remote() for shard in self._shards]))

    def __len__(self) -> int:
        return sum(self._sizes)

    def search(self, queries: np.ndarray, top_k: int = 10, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        """Search all shards and keep the best.

        Args:
            queries: As in :meth:`st_dimreduce.CodeIndex.search`.
            top_k: As there. Defaults to 10.
            options: Other arguments of :meth:`st_dimreduce.CodeIndex.search`.

        Returns:
            Cosines and ids, as that method returns them.

        Raises:
            ValueError: As that method.
        """
        asked = ray.put(queries)
        found = _raised(lambda: ray.get([shard.search.remote(asked, top_k, options) for shard in self._shards]))
        scores, ids = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)


class _Shard:
    def __init__(self, path: str) -> None:
        from st_dimreduce.codes.index import open_index  # noqa: PLC0415, optional

        self._index = open_index(path)

    def size(self) -> int:
        return len(self._index)

    def search(self, queries: np.ndarray, top_k: int, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        return self._index.search(queries, top_k, **options)


def _build_shard(
    table: pa.Table,
    place: Path,
    head: BaseHead,
    manifest: Manifest,
    middles: np.ndarray | None,
    id_column: str,
    seed: int,
) -> dict[str, Any]:
    ids = MemorySource(table, table.column_names[-1], codes=True).ids(id_column)
    # Named after what is in it: a task that Ray repeats replaces what it has made.
    name = hashlib.blake2b(str(ids[0]).encode(), digest_size=8).hexdigest()
    manifest = replace(manifest, named=holds_names(ids))
    with new_folder(place / f"shard-{name}", overwrite=True, marker=MANIFEST) as folder:
        fill(folder, _codes(table), ids, head, manifest, middles, seed=seed)
    return {"path": np.array([str(place / f"shard-{name}")])}


def _codes(table: pa.Table) -> np.ndarray:
    return codes_of(table.column(table.column_names[-1]))


def _selected(table: pa.Table, column: str | None, id_column: str) -> pa.Table:
    plain = _plain(table)
    if id_column not in plain.column_names:
        raise UserError(f"there is no column {id_column!r}: expected one of {', '.join(plain.column_names)}")
    return plain.select([id_column, vector_column(plain.schema, column)])


def _tables(dataset: Dataset) -> Iterator[pa.Table]:
    for reference in _raised(dataset.to_arrow_refs):
        yield ray.get(reference)


def _raised(call: Callable[[], Result]) -> Result:
    """Return what a call of Ray returns; a ``ValueError`` of a worker is raised as one."""
    try:
        return call()
    except (ray.exceptions.RayTaskError, ray.exceptions.RayActorError) as error:
        causes = [line for line in str(error).splitlines() if line.startswith(_VALUE_ERROR)]
        if not causes:
            raise
        raise UserError(causes[-1].removeprefix(_VALUE_ERROR)) from error


def _summarize(
    table: pa.Table, share: float, column: str | None, seed: int, on_bad_row: OnBadRow
) -> dict[str, np.ndarray]:
    sample_size = math.ceil(share * table.num_rows) + 100
    return {"summary": np.array([read_summary(_plain(table), column, sample_size, seed, on_bad_row)], object)}


def _merge(batch: dict[str, Any], sample_size: int, seed: int) -> dict[str, Any]:
    merged = Summary(batch["summary"][0].width, sample_size, seed)
    for summary in batch["summary"]:
        merged.merge(summary)
    return {"summary": np.array([merged], object)}


def _vectors(table: pa.Table, column: str | None) -> pa.Table:
    plain = _plain(table)
    return plain.select([vector_column(plain.schema, column)])


def _reduce(table: pa.Table, head: BaseHead, precision: Precision, **settings: Any) -> Iterator[pa.Table]:
    for batch in local.reduce_vectors(_plain(table), head, None, precision, **settings):
        yield pa.Table.from_batches([batch])


class _Encoder:
    """A worker that has loaded the model."""

    def __init__(self, model: Any, precision: Precision, text_column: str, column: str, batch_size: int) -> None:
        from st_dimreduce.models.load import load_model  # noqa: PLC0415, only workers that encode need torch

        self._model = load_model(model) if isinstance(model, (str, os.PathLike)) else model
        self._precision, self._head = precision, _fingerprint(self._model)
        self._text_column, self._column = text_column, column
        self._batch_size = batch_size

    def __call__(self, table: pa.Table) -> pa.Table:
        texts = table[self._text_column].to_pylist()
        embeddings = self._model.encode_document(texts, batch_size=self._batch_size, show_progress_bar=False)
        schema = code_schema(None, self._column, Origin(self._precision, embeddings.shape[1], self._head))
        codes = code_batch(schema, self._column, quantize(embeddings, self._precision), None)
        return table.append_column(codes.schema.field(0), codes.column(0))


def _fingerprint(model: Any) -> str | None:
    """Return what the codes of a model are known by; None for one without a head."""
    from st_dimreduce.dim_reduce import DimReduce

    try:
        return DimReduce.from_model(model).to_head().fingerprint
    except ValueError:
        return None


def _plain(table: pa.Table) -> pa.Table:
    """Return the table with Ray's one-dimensional tensors as the lists that they are stored as."""
    for place, field in enumerate(table.schema):
        if isinstance(field.type, pa.ExtensionType) and len(getattr(field.type, "shape", None) or ()) == 1:
            chunks = [chunk.storage for chunk in table.column(place).chunks]
            table = table.set_column(place, field.name, pa.chunked_array(chunks, field.type.storage_type))
    return table
