"""FAISS: an index of full vectors is reduced to a smaller index."""

from __future__ import annotations

import math
from contextlib import closing
from typing import Any

import faiss
import numpy as np

from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.precision import bytes_to_levels, dequantize
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError
from st_dimreduce.vectors.reduce import reduce_vectors
from st_dimreduce.vectors.sources import DEFAULT_BATCH_BYTES, FaissSource

_PACKED = (Precision.INT4, Precision.INT2)
_GRID = 4.0  # end of the int8 grid in standard deviations of an output, as in codes/precision.py


def reduce_index(
    index: Any,
    head: BaseHead,
    precision: Precision | str = Precision.FLOAT32,
    *,
    batch_bytes: int = DEFAULT_BATCH_BYTES,
) -> Any:
    """Reduce the vectors of a FAISS index into a new, smaller flat index, in the same order and with the same ids.

    ========== ================================================= ================================================
    float32    ``IndexFlatIP``                                   scores are cosines
    int8       ``IndexScalarQuantizer``, one uniform 8-bit grid  scores are cosines, to the grid's step
    int4, int2 ``IndexPQ``, a fixed codebook of single bytes     scores are cosines times the norm of the code, near 1
    binary     ``IndexBinaryFlat``, padded to a multiple of 8    search with ``quantize(queries, "binary")``
    ========== ================================================= ================================================

    Search all but the last with queries of norm 1, ``model.encode(..., normalize_embeddings=True)``. The grids are the
    fixed ones of :class:`st_dimreduce.Precision`; nothing is trained. An index that does not look at every code is made
    by :func:`st_dimreduce.build_index`, which takes the same FAISS indexes.

    Args:
        index: An ``IndexFlatIP``, ``IndexFlatL2``, ``IndexIVFFlat`` or ``IndexHNSWFlat`` of n vectors of size d, or an
            ``IndexIDMap`` of one. Not changed.
        head: The head, for vectors of size d.
        precision: Precision of the reduced vectors. Defaults to ``"float32"``.
        batch_bytes: As in :func:`st_dimreduce.reduce_vectors`. Defaults to 32 MiB.

    Raises:
        ValueError: If the index does not hold whole vectors or is empty, its vectors are not of the head's size, one
            has no direction, or codes of int4 or int2 would not fill their last byte.
    """
    precision = Precision(precision)
    reduced, stored = _empty_index(head.out_features, precision)
    source = FaissSource(index)
    if source.ids is not None:
        reduced = (faiss.IndexBinaryIDMap if precision is Precision.BINARY else faiss.IndexIDMap)(reduced)
    options: dict[str, Any] = {"batch_bytes": batch_bytes}
    with closing(reduce_vectors(index, head, None, stored, **options)) as batches:
        for codes in batches:
            # A codebook of FAISS codes decoded vectors, each of which is one of its entries.
            rows = dequantize(codes, stored, head.out_features) if precision in _PACKED else codes
            if source.ids is None:
                reduced.add(rows)
            else:
                reduced.add_with_ids(rows, source.ids[reduced.ntotal : reduced.ntotal + len(rows)])
    return reduced


def _empty_index(size: int, precision: Precision) -> tuple[Any, Precision]:
    """Return an index, and the precision of what is added to it."""
    if precision is Precision.FLOAT32:
        return faiss.IndexFlatIP(size), precision
    if precision is Precision.INT8:
        return _scalar_index(size), Precision.FLOAT32  # which makes the codes itself
    width = precision.bytes_per_vector(size)
    if precision is Precision.BINARY:
        return faiss.IndexBinaryFlat(8 * width), precision
    if 8 * width != size * precision.bits:
        per_byte = 8 // precision.bits
        raise UserError(
            f"{size} dimensions in {precision.value}: FAISS takes a multiple of {per_byte}, or use build_index"
        )
    index: Any = faiss.IndexPQ(size, width, 8, faiss.METRIC_INNER_PRODUCT)
    codebook = np.tile(bytes_to_levels(precision) / np.float32(math.sqrt(size)), (width, 1, 1))
    faiss.copy_array_to_vector(codebook.ravel(), index.pq.centroids)
    index.is_trained = True
    return index, precision


def _scalar_index(size: int) -> Any:
    index = faiss.IndexScalarQuantizer(size, faiss.ScalarQuantizer.QT_8bit_uniform, faiss.METRIC_INNER_PRODUCT)
    lowest = -_GRID / math.sqrt(size)
    faiss.copy_array_to_vector(np.array([lowest, -2 * lowest], np.float32), index.sq.trained)
    index.is_trained = True
    return index
