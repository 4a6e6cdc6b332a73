"""FAISS indexes: a flat index in, a reduced one out."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from typing import Any

import faiss
import numpy as np

from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.codes.precision import Precision
from st_dimreduce.vectors.reduce import reduce_vectors

_GRID = 4.0  # int8: what the codes reach, in standard deviations of an output, as in Precision.INT8


def reduce_index(
    index: Any,
    head: DimReduce,
    precision: Precision | str = Precision.FLOAT32,
    *,
    show_progress_bar: bool | None = None,
) -> Any:
    """Reduce the vectors of a flat FAISS index into a new, smaller index, in the same order and with the same ids.

    ======== =================================================== ==============================================
    float32  ``IndexFlatIP``                                     scores are cosines
    int8     ``IndexScalarQuantizer``, one uniform 8-bit grid    scores are cosines, to the grid's step
    binary   ``IndexBinaryFlat``, filled up to a multiple of 8   search with ``quantize(queries, "binary")``
    ======== =================================================== ==============================================

    The first two are searched with queries of length 1, ``model.encode(..., normalize_embeddings=True)``. The grid of
    int8 is the fixed one of :class:`st_dimreduce.Precision`, trained on nothing.

    Args:
        index: An ``IndexFlatIP`` or ``IndexFlatL2`` of n vectors of size d, or an ``IndexIDMap`` of one. Left as it is.
        head: The head, for vectors of size d.
        precision: ``"float32"`` (the default), ``"int8"`` or ``"binary"``.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Raises:
        ValueError: If FAISS has no index for the precision, the index is not flat or empty, its vectors are not of the
            head's size, or one has no direction.
    """
    precision = Precision(precision)
    size = head.out_features
    makers: dict[Precision, Callable[[], Any]] = {
        Precision.FLOAT32: lambda: faiss.IndexFlatIP(size),
        Precision.INT8: lambda: _scalar_index(size),
        Precision.BINARY: lambda: faiss.IndexBinaryFlat(8 * precision.bytes_per_vector(size)),
    }
    if precision not in makers:
        raise ValueError(f"FAISS stores no {precision.value} codes: choose float32, int8 or binary, or use search")
    reduced = makers[precision]()
    # FAISS makes the codes of its 8-bit grid itself, from the float vectors.
    stored = Precision.BINARY if precision is Precision.BINARY else Precision.FLOAT32
    ids = None
    if hasattr(index, "id_map"):
        ids = faiss.vector_to_array(index.id_map)
        reduced = (faiss.IndexBinaryIDMap if precision is Precision.BINARY else faiss.IndexIDMap)(reduced)
    with closing(reduce_vectors(index, head, None, stored, show_progress_bar=show_progress_bar)) as batches:
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
