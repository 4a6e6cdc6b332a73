"""FAISS: a flat index of full vectors is reduced to a smaller index."""

from __future__ import annotations

import math
from contextlib import closing
from typing import Any

import faiss
import numpy as np

from st_dimreduce.enums import Precision
from st_dimreduce.head import HeadLike
from st_dimreduce.vectors.reduce import reduce_vectors
from st_dimreduce.vectors.sources import DEFAULT_BATCH_BYTES

_GRID = 4.0  # end of the int8 grid in standard deviations of an output, as in codes/precision.py


def reduce_index(
    index: Any,
    head: HeadLike,
    precision: Precision | str = Precision.FLOAT32,
    *,
    batch_bytes: int = DEFAULT_BATCH_BYTES,
    show_progress_bar: bool | None = None,
) -> Any:
    """Reduce the vectors of a flat FAISS index into a new, smaller index, in the same order and with the same ids.

    ======== =================================================== ==============================================
    float32  ``IndexFlatIP``                                     scores are cosines
    int8     ``IndexScalarQuantizer``, one uniform 8-bit grid    scores are cosines, to the grid's step
    binary   ``IndexBinaryFlat``, padded to a multiple of 8      search with ``quantize(queries, "binary")``
    ======== =================================================== ==============================================

    Search the first two with queries of norm 1, ``model.encode(..., normalize_embeddings=True)``. The int8 grid is the
    fixed one of :class:`st_dimreduce.Precision`; nothing is trained.

    Args:
        index: An ``IndexFlatIP`` or ``IndexFlatL2`` of n vectors of size d, or an ``IndexIDMap`` of one. Not changed.
        head: The head, for vectors of size d.
        precision: ``"float32"`` (the default), ``"int8"`` or ``"binary"``.
        batch_bytes: As in :func:`st_dimreduce.reduce_vectors`. Defaults to 32 MiB.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Raises:
        ValueError: If FAISS has no index for the precision, the index is not flat or empty, its vectors are not of the
            head's size, or one has no direction.
    """
    head, precision = head.to_head(), Precision(precision)
    reduced: Any
    stored = Precision.FLOAT32
    if precision is Precision.FLOAT32:
        reduced = faiss.IndexFlatIP(head.out_features)
    elif precision is Precision.INT8:
        reduced = _scalar_index(head.out_features)  # makes the codes itself, of float vectors
    elif precision is Precision.BINARY:
        reduced = faiss.IndexBinaryFlat(8 * precision.bytes_per_vector(head.out_features))
        stored = Precision.BINARY
    else:
        raise ValueError(f"FAISS stores no {precision.value} codes: choose float32, int8 or binary, or use search")
    ids = faiss.vector_to_array(index.id_map) if hasattr(index, "id_map") else None
    if ids is not None:
        reduced = (faiss.IndexBinaryIDMap if stored is Precision.BINARY else faiss.IndexIDMap)(reduced)
    options: dict[str, Any] = {"batch_bytes": batch_bytes, "show_progress_bar": show_progress_bar}
    with closing(reduce_vectors(index, head, None, stored, **options)) as batches:
        for codes in batches:
            if ids is None:
                reduced.add(codes)
            else:
                reduced.add_with_ids(codes, ids[reduced.ntotal : reduced.ntotal + len(codes)])
    return reduced


def _scalar_index(size: int) -> Any:
    index = faiss.IndexScalarQuantizer(size, faiss.ScalarQuantizer.QT_8bit_uniform, faiss.METRIC_INNER_PRODUCT)
    lowest = -_GRID / math.sqrt(size)
    faiss.copy_array_to_vector(np.array([lowest, -2 * lowest], np.float32), index.sq.trained)
    index.is_trained = True
    return index
