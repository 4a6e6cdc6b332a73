"""Codes, the stored form of reduced vectors: searched, decoded, saved and loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from st_dimreduce.codes.origin import INDEX_FILE, Origin, beside, origin_beside
from st_dimreduce.codes.precision import check_codes, dequantize, quantize
from st_dimreduce.codes.rows import map_array
from st_dimreduce.codes.search import rescore as rescore_candidates
from st_dimreduce.codes.search import search
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError
from st_dimreduce.files import new_file, write_json

COLUMN = "embedding"  # name of the column of codes in a table of codes alone
_CANDIDATES = 10  # candidates per result that are rescored
_TABLES = (".parquet", ".arrow", ".feather")


@dataclass(frozen=True, eq=False)
class Codes:
    """Stored form of n reduced vectors: a row of bytes, or of floats, per document.

    :meth:`st_dimreduce.Head.encode` makes them of full vectors, :meth:`of` of reduced ones, and
    :meth:`st_dimreduce.Head.transform_file` writes them to a file.

    Args:
        values: float32 unit rows of shape (n, k) for ``"float32"``, int8 of shape (n, k) for ``"int8"``, else uint8 of
            shape (n, ceil(k * bits / 8)), the first dimension in the highest bits of the first byte.
        precision: Precision of the codes.
        out_features: Dimensions k of the reduced vectors.
        head: Fingerprint of the head that made them. Defaults to None: not known.

    Raises:
        UserError: If the values do not have the shape and type of the precision.
    """

    values: np.ndarray
    precision: Precision
    out_features: int
    head: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", Precision(self.precision))
        check_codes(self.values, self.precision, self.out_features)

    @classmethod
    def of(cls, embeddings: Any, precision: Precision | str, head: str | None = None) -> Codes:
        """Quantise reduced embeddings, such as those that a reduced model encodes.

        Args:
            embeddings: Float array of shape (n, k), of any norm.
            precision: How the codes are stored.
            head: Fingerprint of the head that reduced them, ``Head.from_model(model).fingerprint``. Defaults to None.

        Raises:
            UserError: If the embeddings are not of shape (n, k), or entries are masked.
        """
        precision = Precision(precision)
        return cls(quantize(embeddings, precision), precision, embeddings.shape[1], head)

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"Codes({len(self):,} x {self.out_features} {self.precision.value}, {self.bytes_per_vector} bytes each)"

    @property
    def bytes_per_vector(self) -> int:
        """Bytes that one vector takes."""
        return self.precision.bytes_per_vector(self.out_features)

    @property
    def origin(self) -> Origin:
        """Which head made the codes and how they are stored, as written with them."""
        return Origin(self.precision, self.out_features, self.head)

    def decode(self) -> np.ndarray:
        """Return the unit vectors that the codes stand for, float32 of shape (n, k)."""
        return dequantize(self.values, self.precision, self.out_features)

    def search(
        self, queries: Any, k: int = 10, rescore: tuple[Any, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the codes nearest to each query, by the cosine of the float query with the decoded code.

        Every code is scored; for millions, see :class:`st_dimreduce.Index`.

        Args:
            queries: Float array or tensor of shape (q, k), of any norm: from :meth:`st_dimreduce.Head.transform`, or
                encoded by the reduced model.
            k: Results per query; fewer if there are fewer codes. Defaults to 10.
            rescore: The same queries and all n documents as full vectors, of shapes (q, d) and (n, d). The best 10 k
                codes are reordered by their cosines. The documents may be memory-mapped. Defaults to None.

        Returns:
            Cosines, float32, and rows, int64, both of shape (q, min(k, n)), the nearest first.

        Raises:
            UserError: If shapes do not fit, a query holds NaN or infinity, or ``k`` is less than 1.
        """
        shape: tuple[int, ...] = tuple(getattr(queries, "shape", ()))
        if len(shape) == 2 and shape[1] != self.out_features:  # where the last byte is padded, a few more would fit
            advice = "transform them with the head that made the codes"
            raise UserError(f"queries of {shape[1]} dimensions for codes of {self.out_features}: {advice}")
        if rescore is None:
            return search(queries, self.values, self.precision, k)
        full_queries, full_documents = rescore
        if len(full_documents) != len(self):
            raise UserError(f"rescore has {len(full_documents)} documents, expected {len(self)}, one per code")
        candidates = search(queries, self.values, self.precision, _CANDIDATES * k)[1]
        return rescore_candidates(full_queries, full_documents, candidates, k)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the codes to a file, which appears once it is complete.

        Args:
            path: A ``.npy`` file, beside which ``NAME.npy.codes.json`` names the head, or a ``.parquet`` or ``.arrow``
                table with one column, ``embedding``.

        Raises:
            UserError: If the suffix is another.
        """
        target = Path(path)
        if target.suffix not in (".npy", *_TABLES):
            raise UserError(f"{target} ends in {target.suffix or 'no suffix'}: expected .npy, .parquet or .arrow")
        if target.suffix in _TABLES:
            from st_dimreduce.codes.tables import write_codes  # noqa: PLC0415, optional

            with new_file(target) as file:
                write_codes(self.values, self.origin, COLUMN, file)
            return
        with new_file(beside(target)) as file:
            write_json(file, self.origin.content)
        with new_file(target) as file:
            np.save(file, self.values, allow_pickle=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str], column: str | None = None) -> Codes:
        """Read codes that this package wrote; ``.npy`` files are memory-mapped.

        Args:
            path: A ``.npy``, ``.parquet`` or ``.arrow`` file, or a folder of ``.npy`` or ``.parquet`` files.
            column: The column of codes in a table. Defaults to None: the only one.

        Raises:
            FileNotFoundError: If there is no such file or folder.
            UserError: If nothing beside a ``.npy`` file says how its codes are stored, or the file is damaged.
        """
        source = Path(path)
        if not source.exists():
            raise FileNotFoundError(f"{source} does not exist: give the file or folder that codes were written to")
        if (source / INDEX_FILE).is_file():
            raise UserError(f"{source} is an index: search it with st-dimreduce index search, or Index.load")
        files = [source] if source.suffix == ".npy" else sorted(source.glob("*.npy"))
        if not files:
            from st_dimreduce.codes.tables import read_codes  # noqa: PLC0415, optional

            values, origin = read_codes(source, column)
            return cls(values, origin.precision, origin.out_features, origin.head)
        found = origin_beside(source)
        if found is None:
            made = "Codes(np.load(path), precision, out_features)"
            raise UserError(f"nothing beside {source} says what its codes are: if you know, give {made}")
        parts = [map_array(file) for file in files]
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return cls(values, found.precision, found.out_features, found.head)
